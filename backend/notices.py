"""The sentences of the warnings that travel with answers: code, Spanish, English."""

from __future__ import annotations

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
        "Sólo hay {n} puntuaciones OK: con menos de 20 el umbral es poco fiable.",
        "There are only {n} OK scores: with fewer than 20 the threshold is not reliable.",
    ),
    "coreset_capped": (
        "La memoria se limitó a {limit} filas (MAX_CORESET) en lugar de {wanted}.",
        "The memory was limited to {limit} rows (MAX_CORESET) instead of {wanted}.",
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
    "duplicates_left_out": (
        "{n} imágenes repetidas no se han contado dos veces.",
        "{n} repeated images were not counted twice.",
    ),
}
