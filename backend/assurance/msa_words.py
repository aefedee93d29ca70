"""The words of the page of a measurement systems analysis, in Spanish and English."""

from __future__ import annotations

PAGE: dict[str, tuple[str, str]] = {
    "title": ("Análisis del sistema de medición", "Measurement systems analysis"),
    "made_on": (
        "hecho el {when} con la versión {version} del servicio",
        "made on {when} by version {version} of the service",
    ),
    "service": ("el servicio", "the service"),
    "short_score_acceptable": (
        "La puntuación se repite bien: entre fotos de la misma pieza varía un {share} % de la variación total, y "
        "distingue {ndc} clases de piezas.",
        "The score repeats well: between pictures of the same part it varies by {share} % of all variation, and it "
        "tells {ndc} classes of parts apart.",
    ),
    "short_score_marginal": (
        "La puntuación se repite de forma aceptable según para qué: entre fotos de la misma pieza varía un {share} % "
        "de la variación total, y distingue {ndc} clases de piezas.",
        "Whether the score repeats well enough depends on the use: between pictures of the same part it varies by "
        "{share} % of all variation, and it tells {ndc} classes of parts apart.",
    ),
    "short_score_unacceptable": (
        "La puntuación no se repite lo suficiente: entre fotos de la misma pieza varía un {share} % de la variación "
        "total. Sujeta mejor la pieza y la luz, o elige piezas más distintas entre sí.",
        "The score does not repeat well enough: between pictures of the same part it varies by {share} % of all "
        "variation. Hold part and light steadier, or choose parts that differ more.",
    ),
    "short_acceptable": ("{name}: aceptable según AIAG.", "{name}: acceptable by AIAG's criteria."),
    "short_marginal": (
        "{name}: al límite según AIAG; quizá haga falta mejorar.",
        "{name}: marginal by AIAG's criteria; may need to improve.",
    ),
    "short_unacceptable": (
        "{name}: no aceptable según AIAG; hay que mejorar.",
        "{name}: not acceptable by AIAG's criteria; must improve.",
    ),
    "short_agree": (
        "De las piezas todos dicen siempre lo mismo en el {share} %.",
        "Of {share} % of the parts all always say the same.",
    ),
    "repeatability": ("Repetibilidad de la puntuación", "Repeatability of the score"),
    "repeatability_is": (
        "Cada pieza se fotografió de nuevo varias veces. Análisis de varianza de un factor con piezas aleatorias; los "
        "intervalos son del 95 %.",
        "Each part was photographed several times anew. One-way analysis of variance with random parts; intervals are "
        "of 95 %.",
    ),
    "parts_scores": ("Piezas · puntuaciones", "Parts · scores"),
    "within": ("Desviación típica de la misma pieza (EV)", "Standard deviation within a part (EV)"),
    "between": ("Desviación típica entre piezas (PV)", "Standard deviation between parts (PV)"),
    "ev": ("EV como parte de la variación total", "EV as a share of all variation"),
    "ndc": ("Categorías distintas (ndc)", "Distinct categories (ndc)"),
    "doubtful": (
        "Umbral, y alrededor de él lo que otra foto puede cambiar",
        "Threshold, and around it what another picture may change",
    ),
    "judged": ("Según AIAG", "By AIAG's criteria"),
    "score_criteria": (
        "AIAG: por debajo del 10 % aceptable, hasta el 30 % según la aplicación, y ndc de 5 o más.",
        "AIAG: below 10 % acceptable, up to 30 % depending on the use, and an ndc of 5 or more.",
    ),
    "agreement": ("Concordancia de los veredictos", "Agreement of verdicts"),
    "parts_trials": ("Piezas · evaluadores · repeticiones", "Parts · appraisers · trials"),
    "all_agree": ("Piezas en que todos dicen siempre lo mismo", "Parts of which all always say the same"),
    "all_right": ("… y lo que dice la referencia", "… and what the reference says"),
    "fleiss": ("Kappa de Fleiss de todos los veredictos", "Fleiss' kappa of all verdicts"),
    "each": ("Cada evaluador", "Each appraiser"),
    "appraiser": ("Evaluador", "Appraiser"),
    "itself": ("Consigo mismo", "With itself"),
    "effectiveness": ("Efectividad", "Effectiveness"),
    "misses": ("Se le escapan", "Misses"),
    "false_alarms": ("Falsas alarmas", "False alarms"),
    "kappa": ("Kappa con la referencia", "Kappa with the reference"),
    "criteria": (
        "AIAG: aceptable con efectividad del 90 % o más, 2 % de escapes y 5 % de falsas alarmas como mucho; al límite "
        "con 80 %, 5 % y 10 %; si no, no aceptable. Los intervalos son exactos, del 95 %.",
        "AIAG: acceptable with an effectiveness of 90 % or more, misses of 2 % and false alarms of 5 % at most; "
        "marginal with 80 %, 5 % and 10 %; otherwise not acceptable. Intervals are exact, of 95 %.",
    ),
    "between_appraisers": ("Unos con otros", "Between appraisers"),
    "kappa_criteria": (
        "Kappa de Cohen: por encima de {good} la concordancia es buena; por debajo de {poor} es mala.",
        "Cohen's kappa: above {good} agreement is good; below {poor} it is poor.",
    ),
    "good": ("buena", "good"),
    "bad": ("mala", "bad"),
    "acceptable": ("aceptable", "acceptable"),
    "marginal": ("al límite", "marginal"),
    "unacceptable": ("no aceptable", "not acceptable"),
    "notices": ("Lo que conviene saber", "What else to know"),
    "signing": ("Firmas", "Signatures"),
    "gauge": ("Puesto y cámara", "Station and camera"),
    "characteristic": ("Pieza y característica", "Part and characteristic"),
    "made": ("Hecho por", "Made by"),
    "checked": ("Revisado por", "Checked by"),
    "approved": ("Aprobado por", "Approved by"),
    "person": ("Nombre", "Name"),
    "date": ("Fecha", "Date"),
    "signature": ("Firma", "Signature"),
}
