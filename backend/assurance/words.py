"""The words of a certificate's page, in Spanish and English. They are read by people who never heard of embeddings."""

from __future__ import annotations

from typing import Literal

Language = Literal["es", "en"]

PAGE: dict[str, tuple[str, str]] = {
    "title": ("Certificado de inspección", "Inspection certificate"),
    "of": ("Modelo {model}", "Model {model}"),
    "made": (
        "Hecho el {when} con la versión {version} del servicio",
        "Made on {when} by version {version} of the service",
    ),
    "in_short": ("En pocas palabras", "In short"),
    "short_reject": (
        "De las piezas buenas como las que se puntuaron rechaza como mucho el {bound} %, con una confianza "
        "del {confidence} %.",
        "Of good parts like those that were scored it rejects {bound} % at most, with a confidence of {confidence} %.",
    ),
    "short_finds": (
        "Encuentra al menos nueve de cada diez defectos claros como estos, en cualquier zona, desde este tamaño:",
        "It finds at least nine of ten clear defects like these, in any zone, from this size on:",
    ),
    "short_not": (
        "No se puede asegurar que encuentre nueve de cada diez, ni siquiera con el mayor tamaño probado: {kinds}.",
        "That it finds nine of ten cannot be assured even at the largest size that was tried: {kinds}.",
    ),
    "short_suspects": (
        "Entre las muestras buenas hay imágenes que se apartan de las demás: {names}. Conviene mirarlas.",
        "Among the good samples some images stand out from the others: {names}. They should be looked at.",
    ),
    "short_no_suspects": (
        "Entre las {n} muestras buenas ninguna se aparta de las demás.",
        "Among the good samples ({n}) none stands out from the others.",
    ),
    "short_fragile": (
        "Lo que más le afecta: {change}; así rechaza el {rate} % de las piezas buenas.",
        "What disturbs it most: {change}; then it rejects {rate} % of the good parts.",
    ),
    "short_sturdy": (
        "Ninguno de los pequeños cambios de luz, enfoque, posición o giro que se probaron le hace rechazar "
        "más de la décima parte de las piezas buenas.",
        "None of the small changes of light, focus, position or angle that were tried makes it reject more "
        "than a tenth of the good parts.",
    ),
    "short_misses": (
        "De {n} piezas malas conocidas se le escapan {missed}.",
        "Of {n} known bad parts it misses {missed}.",
    ),
    "short_few": (
        "De estos se probaron demasiado pocos para asegurar un tamaño: {kinds}.",
        "Too few of these were tried to assure a size: {kinds}.",
    ),
    "identity": ("Qué modelo es", "Which model this is"),
    "identity_text": (
        "Un modelo aprende de imágenes de piezas buenas ({n} en este) qué aspecto tienen. A cada imagen nueva le da "
        "una puntuación: cuánto se apartan sus zonas más raras de todo lo que vio al aprender. Por encima del umbral "
        "la pieza se rechaza. Los datos siguientes dicen qué modelo es exactamente.",
        "A model learns from pictures of good parts ({n} for this one) what they look like. It gives each new picture "
        "a score: how far its strangest places are from all that it saw when it learnt. Above the threshold the part "
        "is rejected. What follows says exactly which model this is.",
    ),
    "generation": ("Generación", "Generation"),
    "model_version": ("Versión del modelo", "Model version"),
    "fitted": ("Aprendido el", "Learnt on"),
    "extractor": ("Extractor", "Extractor"),
    "fingerprint": ("Huella del extractor", "Fingerprint of the extractor"),
    "input": ("Tamaño de entrada y rejilla", "Input size and grid"),
    "rows": ("Filas de la memoria", "Rows of the memory"),
    "n_images": ("Imágenes de piezas buenas aprendidas", "Images of good parts learnt from"),
    "samples_hash": ("SHA-256 de todas ellas", "SHA-256 of all of them"),
    "scored_by": ("Cómo se puntúa", "How it is scored"),
    "scored_percentile": (
        "el percentil {percentile} de lo que se aparta cada punto",
        "the {percentile}th percentile of how far each point is off",
    ),
    "scored_max": ("el punto que más se aparta", "the point that is farthest off"),
    "scored_top_mean": (
        "la media de los puntos que más se apartan",
        "the mean of the points that are farthest off",
    ),
    "scored_power_mean": (
        "una media en la que pesan los puntos que más se apartan",
        "a mean in which the points that are farthest off weigh most",
    ),
    "scored_area": (
        "lo que se aparta como poco una zona del tamaño menor que cuenta",
        "how far a place of the smallest size that counts is off at least",
    ),
    "smallest": ("Zona menor que se señala", "Smallest place that is marked"),
    "threshold": ("Umbral", "Threshold"),
    "rule_percentile": (
        "por el percentil {percentile} de las buenas",
        "by the {percentile}th percentile of good parts",
    ),
    "rule_promised": ("el menor que permite la promesa", "the lowest that the promise allows"),
    "rule_chosen": ("elegido por quien calibró", "chosen by whoever calibrated"),
    "note": ("Nota", "Note"),
    "scale": ("Escala", "Scale"),
    "rejects": ("Piezas buenas rechazadas", "Good parts that are rejected"),
    "rejects_text": (
        "Al calibrar, el umbral rechazaba {estimate} de {n} piezas buenas ({basis}). Sea cual sea la forma de "
        "sus puntuaciones, la proporción de piezas buenas rechazadas no pasa del {bound} % con una confianza "
        "del {confidence} %, siempre que las piezas que vengan sean como las que se puntuaron.",
        "When it was calibrated the threshold rejected {estimate} of {n} good parts ({basis}). However their "
        "scores are distributed, the share of good parts that it rejects is no more than {bound} % with a "
        "confidence of {confidence} %, as long as the parts to come are like those that were scored.",
    ),
    "rejects_needed": (
        "Para prometer un {aim} % hacen falta {needed} piezas buenas.",
        "Promising {aim} % takes {needed} good parts.",
    ),
    "rejects_seen": (
        "Para este certificado se inspeccionaron {n} piezas buenas ({basis}) y se rechazaron {rejected}.",
        "For this certificate {n} good parts were inspected ({basis}), and {rejected} rejected.",
    ),
    "rejects_same": (
        "Puede que esas mismas piezas hayan fijado el umbral.",
        "The same parts may have set the threshold.",
    ),
    "misses_text": (
        "De {n} piezas malas conocidas se le escapaban {missed}: entre el {low} y el {high} % con un "
        "{confidence} % de confianza.",
        "Of {n} known bad parts it missed {missed}: between {low} and {high} % with a confidence of {confidence} %.",
    ),
    "score": ("puntuación", "score"),
    "scores_text": (
        "Cada barra dice cuántas de esas piezas buenas tienen esa puntuación. La raya roja es el umbral.",
        "Each bar says how many of these good parts have that score. The red line is the threshold.",
    ),
    "basis_held_out": ("que el modelo no había visto", "which the model had not seen"),
    "basis_leave_one_out": (
        "todas o algunas de las que aprendió el modelo, puntuadas como si no las hubiera visto",
        "all or some of which the model learnt from, those scored as if it had not seen them",
    ),
    "basis_given": ("con las puntuaciones que envió el cliente", "with the scores that the client sent"),
    "detects": ("Defectos que encuentra", "Defects that it finds"),
    "detects_text": (
        "En {parts} piezas buenas se dibujaron defectos de tamaños conocidos, {trials} de cada clase, zona y "
        "contraste, y cada uno se inspeccionó con el umbral.",
        "On {parts} good parts defects of known sizes were drawn, {trials} of each kind, zone and contrast, "
        "and each was inspected at the threshold.",
    ),
    "detects_read": (
        "Las curvas dicen qué parte de ellos se encuentra según su tamaño; la franja es lo que no baja de ahí con un "
        "95 % de confianza. «a50» y «a90» son los tamaños desde los que lo más probable es encontrar la mitad y nueve "
        "de cada diez; «a90/95» es el tamaño desde el que se encuentran al menos nueve de cada diez, con esa "
        "confianza.",
        "The curves say which share of them is found by their size; the band is what that does not fall below, with "
        "a confidence of 95 %. “a50” and “a90” are the sizes from which half and nine of ten are most likely found; "
        "“a90/95” is the size from which at least nine of ten are found, with that confidence.",
    ),
    "zones_of_part": (
        "Las zonas van del borde de la pieza a su centro.",
        "Zones go from the part's edge to its centre.",
    ),
    "zones_of_roi": (
        "Las zonas van del borde de la imagen a su centro, pues no se dijo dónde está la pieza.",
        "Zones go from the picture's border to its centre, since nobody said where the part is.",
    ),
    "detects_px": (
        "Los milímetros suponen {mm_per_px} mm por píxel.",
        "Millimetres assume {mm_per_px} mm per pixel.",
    ),
    "kind": ("Defecto", "Defect"),
    "zone": ("Zona", "Zone"),
    "found": ("Encontrados", "Found"),
    "never": ("no llega con {largest}", "not reached at {largest}"),
    "few": ("muy pocos", "too few"),
    "share_found": ("encontrados", "found"),
    "kind_dark": ("mancha oscura", "dark spot"),
    "kind_bright": ("mancha clara", "bright spot"),
    "kind_colour": ("mancha de color", "coloured spot"),
    "kind_scratch": ("rayado", "scratch"),
    "kind_dent": ("abolladura", "dent"),
    "kind_patch": ("trozo fuera de sitio", "misplaced patch"),
    "kind_missing": ("textura que falta", "missing texture"),
    "zone_centre": ("centro", "centre"),
    "zone_middle": ("entre medias", "middle"),
    "zone_edge": ("borde", "edge"),
    "grade_clear": ("claro", "clear"),
    "grade_faint": ("tenue", "faint"),
    "across": ("{mm} mm de diámetro", "{mm} mm across"),
    "long": ("{mm} mm de largo", "{mm} mm long"),
    "example": ("Así se ve de {size}", "What {size} looks like"),
    "suspects": ("Muestras buenas que se apartan", "Good samples that stand out"),
    "suspects_text": (
        "Cada muestra se comparó con las demás. Estas se apartan tanto que no parece casualidad (de cada cien "
        "avisos así, unos cinco serían falsos). Si alguna no es de una pieza buena, hay que quitarla y volver "
        "a aprender.",
        "Each sample was compared with the others. These stand out so much that chance is not a likely reason "
        "(of a hundred such, about five would be false alarms). If one is not of a good part, leave it out "
        "and learn again.",
    ),
    "suspects_none": (
        "Se compararon {n} muestras entre sí y ninguna se aparta.",
        "Samples compared with each other: {n}. None stands out.",
    ),
    "suspect_times": ("{times} veces lo habitual", "{times} times the usual"),
    "stability": ("Qué le afecta", "What disturbs it"),
    "stability_text": (
        "Las mismas piezas buenas, con pequeños cambios en la imagen. La barra es la parte que se rechaza; la "
        "raya, lo que no pasa de ahí con un 95 % de confianza.",
        "The same good parts with small changes of the picture. The bar is the share that is rejected; the "
        "line is what it does not exceed with a confidence of 95 %.",
    ),
    "change_none": ("sin cambios", "as they are"),
    "change_light": ("luz {amount} %", "light {amount} %"),
    "change_focus": ("desenfoque de {amount} px (de 256)", "defocus of {amount} px (of 256)"),
    "change_shift": ("desplazadas un {amount} % del lado", "shifted by {amount} % of the side"),
    "change_turn": ("giradas {amount}°", "turned by {amount}°"),
    "change_of_light": ("luz un {amount} % distinta", "light different by {amount} %"),
    "rejected": ("rechazadas", "rejected"),
    "not_said": ("Lo que este certificado no dice", "What this certificate does not say"),
    "not_real": (
        "No mide defectos reales. Los dibujados enseñan a qué es sensible el modelo; los reales se miden con "
        "piezas malas reales.",
        "It does not measure real defects. Those drawn show what the model is sensitive to; real ones are "
        "measured with real bad parts.",
    ),
    "not_future": (
        "Vale para piezas, cámara, luz y posición como las de las imágenes usadas. Si cambian, hay que repetirlo.",
        "It holds for parts, camera, light and position as in the images that were used. Repeat it when they change.",
    ),
    "not_labels": (
        "Supone que las piezas usadas son de verdad buenas.",
        "It takes the parts that were used to be good indeed.",
    ),
    "not_pointwise": (
        "Cada cifra tiene su 95 % por separado: de veinte, una puede estar fuera.",
        "Each figure has its 95 % for itself: one of twenty may be off.",
    ),
    "not_whole": (
        "Los defectos se dibujaron solo en piezas que el modelo acepta; las rechazadas de antemano no cuentan.",
        "Defects were drawn only on parts that the model accepts; those rejected beforehand do not count.",
    ),
    "not_leave_one_out": (
        "Se usaron piezas que el modelo había visto, sin sus filas: no es lo mismo que piezas nuevas.",
        "Parts that the model had seen were used, without their rows: that is not the same as new parts.",
    ),
    "notices": ("Avisos", "Warnings"),
}
"""By name: Spanish, English."""


def words(name: str, language: Language, **values: object) -> str:
    """The words of that name, with their values; no unit is parted from its number at the end of a line."""
    es, en = PAGE[name]
    text = (es if language == "es" else en).format(**values)
    return text.replace(" %", "\u00a0%").replace(" mm", "\u00a0mm")
