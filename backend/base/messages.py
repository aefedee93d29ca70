"""The warnings that travel with answers: code, Spanish, English."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Language = Literal["es", "en"]


class Lenient(dict[str, Any]):
    """Values for a template: errors and warnings among them with their own text, '?' for what was not given."""

    @classmethod
    def of(cls, values: dict[str, Any], language: Language) -> Lenient:
        """`values` for a sentence in `language`."""
        return cls({k: v.text(language) if hasattr(v, "text") else v for k, v in values.items()})

    def __missing__(self, key: str) -> str:
        return "?"


class Phrase:
    """Words in both languages that become part of a sentence, as the reason of an error."""

    def __init__(self, es: str, en: str, **values: Any) -> None:
        self.es, self.en, self.values = es, en, values

    def text(self, language: Language) -> str:
        """The words in `language`."""
        return (self.es if language == "es" else self.en).format_map(Lenient.of(self.values, language))

    def __str__(self) -> str:
        return self.text("en")


@dataclass(frozen=True)
class Notice:
    """A warning that travels with an answer: a stable code and its sentence in both languages."""

    code: str
    values: dict[str, Any] = field(default_factory=dict)

    def text(self, language: Language) -> str:
        """The sentence in `language`."""
        es, en = NOTICES[self.code]
        return (es if language == "es" else en).format_map(Lenient.of(self.values, language))


NOTICES: dict[str, tuple[str, str]] = {
    "degraded": (
        "Servicio degradado: sin los pesos de {model} se usa el extractor sin pesos 'texture' ({reason}).",
        "Degraded service: without the weights of {model} the weight-free extractor 'texture' is used ({reason}).",
    ),
    "older_memory": (
        "La memoria es de un formato anterior y no dice con qué extractor se hizo: repite /fit_ok cuando puedas.",
        "The memory is of an older format and does not say which extractor made it: run /fit_ok again soon.",
    ),
    "memory_of_other_model": (
        "Esta memoria se hizo para {theirs} y está en la carpeta de {key}: comprueba las carpetas, o repite /fit_ok.",
        "This memory was made for {theirs} and lies in the folder of {key}: check the folders, or run /fit_ok again.",
    ),
    "device_out_of_memory": (
        "La GPU se quedó sin memoria y el servicio sigue en la CPU, más lento: libera la GPU y reinicia el servicio.",
        "The GPU ran out of memory and the service goes on on the CPU, slower: free the GPU and restart the service.",
    ),
    "older_calibration": (
        "La calibración es de un formato anterior y no dice para qué memoria se hizo: calibra de nuevo.",
        "The calibration is of an older format and does not say which memory it was made for: calibrate again.",
    ),
    "calibration_of_former_memory": (
        "El umbral se calibró con una memoria anterior de este ROI: calibra de nuevo.",
        "The threshold was calibrated with a former memory of this ROI: calibrate again.",
    ),
    "calibration_stale": (
        "El umbral se calibró con otro extractor u otra forma de puntuar y no se aplica: calibra de nuevo.",
        "The threshold was calibrated with another extractor or way of scoring and is not applied: calibrate again.",
    ),
    "not_calibrated": (
        "Sin calibrar: no hay umbral ni veredicto hasta que se llame a /calibrate_ng.",
        "Not calibrated: there is no threshold and no verdict until /calibrate_ng is called.",
    ),
    "percentile_changed": (
        "Las puntuaciones se hicieron con el percentil {former} y ahora se usa {new}: inspecciona y calibra de nuevo.",
        "The scores were made with percentile {former}; {new} is used from now on: inspect and calibrate again.",
    ),
    "scores_overlap": (
        "Las puntuaciones OK y NG se solapan (p_ok={p_ok:.4f}, p5_ng={p5_ng:.4f}): el umbral no puede separarlas.",
        "The OK and NG scores overlap (p_ok={p_ok:.4f}, p5_ng={p5_ng:.4f}): no threshold can separate them.",
    ),
    "few_ok_scores": (
        "Puntuaciones OK: {n}. Con menos de 20 el umbral es poco fiable.",
        "OK scores: {n}. With fewer than 20 the threshold is not reliable.",
    ),
    "coreset_capped": (
        "La memoria se limitó a {limit} filas (MAX_CORESET) en lugar de {wanted}.",
        "The memory was limited to {limit} rows (MAX_CORESET) instead of {wanted}.",
    ),
    "fitted_in_passes": (
        "Los vectores de estas imágenes no caben en {limit} MB (FIT_MEMORY_MB): la memoria se eligió por partes.",
        "The embeddings of these images do not fit in {limit} MB (FIT_MEMORY_MB): the memory was chosen in passes.",
    ),
    "roi_resized": (
        "El ROI daba una rejilla de {got} tokens y se ajustó a la de la memoria, {expected}.",
        "The ROI gave a grid of {got} tokens and was fitted to the memory's, {expected}.",
    ),
    "image_downscaled": (
        "La imagen de {megapixels:.1f} MP se redujo a 12 MP para el análisis; las coordenadas son las originales.",
        "The {megapixels:.1f} MP image was scaled down to 12 MP for analysis; coordinates are the original ones.",
    ),
    "mm_per_px_differs": (
        "mm_per_px es {got} y la memoria se hizo con {expected}: las áreas usan {got}.",
        "mm_per_px is {got} and the memory was made with {expected}: areas use {got}.",
    ),
    "shape_missing": (
        "La memoria solo conoce la pieza dentro de su shape y esta imagen llegó sin él: lo que la rodea cuenta.",
        "The memory knows only the part inside its shape; this image came without one, and what is around it counts.",
    ),
    "shapes_differ": (
        "Unas imágenes de esta memoria llegaron con shape y otras sin él: solo estas le enseñan lo que rodea la pieza.",
        "Some images of this memory came with a shape and some without: these alone show it what is around the part.",
    ),
    "foreground_not_learnt": (
        "FOREGROUND_MASK=pca no se aplicó: necesita imágenes enteras y no caben en {limit} MB (FIT_MEMORY_MB).",
        "FOREGROUND_MASK=pca was not applied: it needs whole images, which do not fit in {limit} MB (FIT_MEMORY_MB).",
    ),
    "bank_of_unknown_make": (
        "El memory bank dice embedding_version {version}, que no se conoce: se lee como {assumed}.",
        "The memory bank says embedding_version {version}, which is not known: it is read as {assumed}.",
    ),
    "bank_threshold_of_former": (
        "config.json es de un memory bank anterior: se usa el umbral que guarda el propio banco.",
        "config.json belongs to a former memory bank: the threshold kept in the bank itself is used.",
    ),
    "duplicates_left_out": (
        "Imágenes repetidas que no se han contado dos veces: {n}.",
        "Repeated images that were not counted twice: {n}.",
    ),
    "nothing_new": (
        "Todas las imágenes estaban ya en la memoria: no ha cambiado.",
        "All images were in the memory already: it did not change.",
    ),
    "samples_not_kept": (
        "Las imágenes no se han guardado como muestras: {reason}",
        "The images were not kept as samples: {reason}",
    ),
    "record_not_written": (
        "No se ha podido anotar lo hecho junto a las muestras: {reason}",
        "What was done could not be recorded beside the samples: {reason}",
    ),
    "shape_not_understood": (
        "La forma de {name} no se entiende y se usará el ROI entero: {reason}",
        "The shape of {name} is not understood and the whole ROI will be used: {reason}",
    ),
    "labelled_twice": (
        "Imágenes que ya estaban guardadas con la otra etiqueta: {n}. Borra la que no corresponda.",
        "Images that were stored under the other label already: {n}. Delete the one that is wrong.",
    ),
    "samples_left_out": (
        "Muestras que no se han podido usar: {n}. {reasons}",
        "Samples that could not be used: {n}. {reasons}",
    ),
    "rebuilt_in_part": (
        "Imágenes de la memoria que ya no están: {n}. Se ha rehecho con las demás, calibra de nuevo.",
        "Images of the memory that are gone: {n}. It was rebuilt from the others, calibrate again.",
    ),
    "not_recorded": (
        "Este veredicto no se ha guardado: {reason}.",
        "This verdict was not recorded: {reason}.",
    ),
    "image_not_kept": (
        "El veredicto se ha guardado sin su imagen: {reason}.",
        "The verdict was recorded without its image: {reason}.",
    ),
}
