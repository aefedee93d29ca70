"""Everything that can go wrong, each with a stable code and a text in Spanish and English (warnings: notices.py).

InspectionError
├── BadRequest (400)
│   ├── InvalidId · RecipeInvalid · NoImages · BadForm
│   ├── BadImage: EmptyFile · UndecodableImage · ImageTooSmall · ImageTooLarge · EmptyUpload · UndecodableUpload
│   ├── InvalidShape: ShapeNotJson · ShapeUnknownKind · ShapeBadNumber · ShapeInverted · MaskEmpty
│   ├── MemoryNotFound · TokenGridMismatch · ExtractorMismatch
│   └── InvalidValue · SetNotUnderstood
├── Unauthorized (401) · LoopbackOnly · HostRefused · ReadOnlyKey · ReadOnlyReplica · OriginRefused (403)
├── NotFound · InspectionNotFound · ImageNotKept · RecordsOff (404)
├── MethodNotAllowed (405) · BodyTimeout (408) · Cancelled (499)
├── FileTooLarge · RequestTooLarge (413) · TooManyRequests (429)
├── InvalidFields (422): BodyNotJson · BodyNotObject · ContentTypeNotJson
├── ServerFault (500): DamagedFile
├── BankNotFound · BankMismatch · ResNetUnavailable · RoiUnreadable (503)
├── DeviceOutOfMemory · QueueFull · NotReady · TimedOut · FitInProgress (503) · DiskFull (507) · ReadOnlyStore (503)
├── NotRecorded · RecordsUnavailable (503)
└── StartupError: WeightsUnavailable · BackendUnavailable · AddressUnavailable · InvalidSettings · RecordsRefused
"""

from __future__ import annotations

from typing import Any, ClassVar

from backend.base.messages import Language as Language  # noqa: PLC0414 - named here for those who import errors
from backend.base.messages import Lenient
from backend.base.messages import Notice as Notice  # noqa: PLC0414
from backend.base.messages import Phrase as Phrase  # noqa: PLC0414


class InspectionError(Exception):
    """Base of all errors. `code` is stable; `text` is a sentence that tells the person what to do."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    es: ClassVar[str] = "Error interno. Busca el identificador {request_id} en el registro del servicio."
    en: ClassVar[str] = "Internal error. Look for the identifier {request_id} in the service's log."

    def __init__(self, **values: Any) -> None:
        self.values = values
        super().__init__(self.text("en"))

    def text(self, language: Language) -> str:
        """The sentence in `language`; values the template names but that were not given read as '?'."""
        template = self.es if language == "es" else self.en
        return template.format_map(Lenient.of(self.values, language))


class BadRequest(InspectionError):
    code = "bad_request"
    status = 400
    es = "Petición no válida: {reason}"
    en = "Bad request: {reason}"


class BadForm(BadRequest):
    code = "bad_form"
    es = "No se pudo leer el cuerpo de la petición: envía multipart/form-data (o JSON) bien formado."
    en = "The request's body could not be read: send well-formed multipart/form-data (or JSON)."


class InvalidValue(BadRequest):
    code = "invalid_value"
    es = "{field}: el valor {value} no es válido; se espera {expected}."
    en = "{field}: the value {value} is not valid; expected {expected}."


class InvalidId(BadRequest):
    code = "invalid_id"
    es = (
        "{field} no es válido ({value}): usa letras, dígitos, espacio y _ - . (64 como máximo), sin separadores, "
        "sin punto ni espacio al principio o al final y sin nombres reservados."
    )
    en = (
        "{field} is not valid ({value}): use letters, digits, spaces and _ - . (64 at most), no separators, "
        "no leading or trailing dot or space and no reserved name."
    )


class RecipeInvalid(BadRequest):
    code = "invalid_recipe"
    es = "recipe_id no es válido ({value}): usa [a-z0-9][a-z0-9_-]* (64 como máximo); 'last' está reservado."
    en = "recipe_id is not valid ({value}): use [a-z0-9][a-z0-9_-]* (64 at most); 'last' is reserved."


class NoImages(BadRequest):
    code = "no_images"
    es = "No hay imágenes: envía al menos una en el campo 'images'."
    en = "There are no images: send at least one in the field 'images'."


class BadImage(BadRequest):
    code = "bad_image"
    es = "{name}: imagen no válida."
    en = "{name}: not a usable image."


class EmptyFile(BadImage):
    code = "empty_file"
    es = "{name}: Archivo vacío."
    en = "{name}: the file is empty."


class UndecodableImage(BadImage):
    code = "unreadable_image"
    es = "{name}: No se pudo decodificar la imagen. Envía un PNG, JPEG, BMP, TIFF o WebP completo."
    en = "{name}: the image could not be decoded. Send a whole PNG, JPEG, BMP, TIFF or WebP file."


class ImageTooSmall(BadImage):
    code = "image_too_small"
    es = "{name}: la imagen mide {width}×{height} px; cada lado debe tener {limit} px como mínimo."
    en = "{name}: the image is {width}×{height} px; each side must be at least {limit} px."


class ImageTooLarge(BadImage):
    code = "image_too_large"
    es = "{name}: la imagen mide {width}×{height} px; el límite es de {limit} megapíxeles (MAX_IMAGE_MP)."
    en = "{name}: the image is {width}×{height} px; the limit is {limit} megapixels (MAX_IMAGE_MP)."


class EmptyUpload(BadImage):
    code = "empty_upload"
    es = "Archivo vacío."
    en = "The file is empty."


class UndecodableUpload(BadImage):
    code = "unreadable_upload"
    es = "No se pudo decodificar la imagen."
    en = "The image could not be decoded."


class InvalidShape(BadRequest):
    code = "invalid_shape"
    es = "shape no es válido."
    en = "shape is not valid."


class ShapeNotJson(InvalidShape):
    code = "shape_not_json"
    es = 'shape no es un objeto JSON; por ejemplo: {{"kind":"circle","cx":192,"cy":192,"r":180}}.'
    en = 'shape is not a JSON object; for example: {{"kind":"circle","cx":192,"cy":192,"r":180}}.'


class ShapeUnknownKind(InvalidShape):
    code = "shape_unknown_kind"
    es = "shape: el tipo {kind} no existe; usa rect, circle o annulus."
    en = "shape: there is no kind {kind}; use rect, circle or annulus."


class ShapeBadNumber(InvalidShape):
    code = "shape_bad_number"
    es = "shape ({kind}): {field} debe ser un número finito{rule}."
    en = "shape ({kind}): {field} must be a finite number{rule}."


class ShapeInverted(InvalidShape):
    code = "shape_inverted"
    es = "shape (annulus): r_inner ({r_inner}) debe ser menor que r ({r})."
    en = "shape (annulus): r_inner ({r_inner}) must be smaller than r ({r})."


class MaskEmpty(InvalidShape):
    code = "mask_empty"
    es = "shape no cubre ningún píxel de la imagen de {width}×{height} px: comprueba las coordenadas."
    en = "shape covers no pixel of the {width}×{height} px image: check its coordinates."


class MemoryNotFound(BadRequest):
    code = "memory_not_found"
    es = "Memoria no encontrada para {key}. Ejecuta /fit_ok primero."
    en = "Memory not found for {key}. Run /fit_ok first."


class TokenGridMismatch(BadRequest):
    code = "token_grid_mismatch"
    es = (
        "Token grid mismatch: got {got}, expected {expected}. {name} no tiene las proporciones del ROI "
        "con que se entrenó: envía el mismo recorte o repite /fit_ok."
    )
    en = (
        "Token grid mismatch: got {got}, expected {expected}. {name} does not have the proportions of the fitted "
        "ROI: send the same crop, or run /fit_ok again."
    )


class ExtractorMismatch(BadRequest):
    code = "extractor_mismatch"
    es = (
        "La memoria de {key} se hizo con otro extractor ({theirs}) y ahora se usa {ours}: "
        "repite /fit_ok o vuelve al extractor anterior."
    )
    en = (
        "The memory of {key} was made with another extractor ({theirs}); the running one is {ours}: "
        "run /fit_ok again, or go back to the former extractor."
    )


class SetNotUnderstood(BadRequest):
    code = "set_not_understood"
    es = (
        "{path} no es un conjunto evaluable: hacen falta train/good y test/<clase> (con test/good y una clase "
        "defectuosa), o bien ok y ng con imágenes; los .json junto a ellas deben ser JSON."
    )
    en = (
        "{path} cannot be evaluated: it needs train/good and test/<class> (with test/good and a defective class), or "
        "ok and ng with images; a .json beside an image must be JSON."
    )


class Unauthorized(InspectionError):
    code = "unauthorized"
    status = 401
    es = "Falta una clave de API válida: envíala en X-API-Key o en Authorization: Bearer."
    en = "A valid API key is missing: send it in X-API-Key or in Authorization: Bearer."


class LoopbackOnly(InspectionError):
    code = "loopback_only"
    status = 403
    es = (
        "Sin API_KEYS sólo se atiende a clientes de esta máquina: configura API_KEYS "
        "(o ALLOW_INSECURE=1 si la red es de confianza)."
    )
    en = (
        "Without API_KEYS only clients on this machine are served: set API_KEYS "
        "(or ALLOW_INSECURE=1 on a network you trust)."
    )


class HostRefused(InspectionError):
    code = "host_refused"
    status = 403
    es = "Sin API_KEYS no se atiende a quien llama a esta máquina {host}: usa 127.0.0.1, o configura API_KEYS o HOST."
    en = "Without API_KEYS nobody who calls this machine {host} is served: use 127.0.0.1, or set API_KEYS or HOST."


class ReadOnlyKey(InspectionError):
    code = "read_only_key"
    status = 403
    es = "Esta clave de API sólo permite inspeccionar y consultar: usa una de API_KEYS para cambiar modelos."
    en = "This API key may only inspect and read: use one of API_KEYS to change models."


class ReadOnlyReplica(InspectionError):
    code = "read_only_replica"
    status = 403
    es = "Este servicio es una réplica de sólo lectura (READ_ONLY=1): envía la petición al servicio principal."
    en = "This service is a read-only replica (READ_ONLY=1): send the request to the main one."


class BodyTimeout(InspectionError):
    code = "body_timeout"
    status = 408
    es = "El cuerpo de la petición se detuvo más de {seconds} s (BODY_TIMEOUT_S): vuelve a enviarla."
    en = "The request's body stalled for more than {seconds} s (BODY_TIMEOUT_S): send it again."


class TooManyRequests(InspectionError):
    code = "too_many_requests"
    status = 429
    es = "Demasiadas peticiones (RATE_LIMIT={limit}): reintenta en {retry_after} s."
    en = "Too many requests (RATE_LIMIT={limit}): try again in {retry_after} s."


class TimedOut(InspectionError):
    code = "timed_out"
    status = 503
    es = "La petición no terminó en {seconds} s (REQUEST_TIMEOUT_S): reintenta en {retry_after} s."
    en = "The request did not end within {seconds} s (REQUEST_TIMEOUT_S): try again in {retry_after} s."


class OriginRefused(InspectionError):
    code = "origin_refused"
    status = 403
    es = "El origen {origin} no puede llamar a este servicio desde un navegador: añádelo a CORS_ORIGINS."
    en = "The origin {origin} may not call this service from a browser: add it to CORS_ORIGINS."


class NotFound(InspectionError):
    code = "not_found"
    status = 404
    es = "No existe {path}. La lista de rutas está en /docs."
    en = "There is no {path}. The list of routes is at /docs."


class MethodNotAllowed(InspectionError):
    code = "method_not_allowed"
    status = 405
    es = "El método {method} no está permitido en {path}. La lista de rutas está en /docs."
    en = "The method {method} is not allowed on {path}. The list of routes is at /docs."


class Cancelled(InspectionError):
    code = "cancelled"
    status = 499
    es = "La petición se canceló; no se ha cambiado nada."
    en = "The request was cancelled; nothing was changed."


class FileTooLarge(InspectionError):
    code = "file_too_large"
    status = 413
    es = "{name} supera el límite de {limit} MB por fichero (MAX_UPLOAD_MB)."
    en = "{name} is over the limit of {limit} MB a file (MAX_UPLOAD_MB)."


class RequestTooLarge(InspectionError):
    code = "request_too_large"
    status = 413
    es = "La petición supera el límite de {limit} MB ({setting}): divídela en varias."
    en = "The request is over the limit of {limit} MB ({setting}): split it into several."


class InvalidFields(InspectionError):
    code = "validation_error"
    status = 422
    es = "Hay campos que faltan o no son válidos: {fields}."
    en = "Some fields are missing or not valid: {fields}."


class BodyNotJson(InvalidFields):
    es = "El cuerpo de la petición no es JSON: falla o se corta en el carácter {at}. Envía un objeto JSON completo."
    en = "The request's body is not JSON: it goes wrong or breaks off at character {at}. Send a whole JSON object."


class BodyNotObject(InvalidFields):
    es = "El cuerpo de la petición debe ser un objeto JSON con los campos de la ruta: en /docs hay un ejemplo."
    en = "The request's body must be a JSON object with the route's fields: /docs shows an example."


class ContentTypeNotJson(InvalidFields):
    es = "La petición necesita la cabecera Content-Type: application/json y un objeto JSON como cuerpo."
    en = "The request needs the header Content-Type: application/json and a JSON object as its body."


class ServerFault(InspectionError):
    code = "internal_error"
    status = 500


class DamagedFile(ServerFault):
    code = "artifact_damaged"
    es = "El fichero {path} está dañado ({reason}): restáuralo de una copia o repite {remedy}."
    en = "The file {path} is damaged ({reason}): restore it from a backup, or run {remedy} again."


class DeviceOutOfMemory(InspectionError):
    code = "device_out_of_memory"
    status = 503
    es = "La GPU se quedó sin memoria: cierra otros programas que la usen, baja INPUT_SIZE o usa DEVICE=cpu."
    en = "The GPU ran out of memory: close other programs that use it, lower INPUT_SIZE, or set DEVICE=cpu."


class QueueFull(InspectionError):
    code = "queue_full"
    status = 503
    es = "El servicio está ocupado (peticiones en espera: {waiting}): reintenta en {retry_after} s."
    en = "The service is busy (requests waiting: {waiting}): try again in {retry_after} s."


class NotReady(InspectionError):
    code = "not_ready"
    status = 503
    es = "El modelo todavía se está cargando: reintenta en {retry_after} s."
    en = "The model is still loading: try again in {retry_after} s."


class FitInProgress(InspectionError):
    code = "fit_in_progress"
    status = 503
    es = "Otro entrenamiento de {key} está en curso: reintenta en {retry_after} s."
    en = "Another fit of {key} is under way: try again in {retry_after} s."


class BankNotFound(InspectionError):
    code = "bank_not_found"
    status = 503
    es = "No existe memory bank: {path}. Créalo con: python -m backend bank CARPETA_DE_PIEZAS_BUENAS."
    en = "There is no memory bank: {path}. Build it with: python -m backend bank FOLDER_OF_GOOD_PARTS."


class BankMismatch(InspectionError):
    code = "bank_mismatch"
    status = 503
    es = "El memory bank tiene vectores de {theirs} valores y ResNet18 da {ours}: rehazlo con python -m backend bank."
    en = "The memory bank has vectors of {theirs} values, and ResNet18 gives {ours}: run python -m backend bank again."


class ResNetUnavailable(InspectionError):
    code = "resnet_unavailable"
    status = 503
    es = (
        "No se encuentran los pesos de ResNet18: {reason}. Copia el fichero .safetensors o .pth a esta máquina e "
        "indica su ruta en RESNET_WEIGHTS."
    )
    en = (
        "The weights of ResNet18 cannot be had: {reason}. Copy the .safetensors or .pth file to this machine and "
        "set RESNET_WEIGHTS to its path."
    )


class RoiUnreadable(InspectionError):
    code = "roi_unreadable"
    status = 503
    es = "No se puede leer la máscara {path} (ROI_PATH): indica una imagen, blanca donde cuenta la puntuación."
    en = "The mask {path} (ROI_PATH) cannot be read: name a picture that is white where the score counts."


class ReadOnlyStore(InspectionError):
    code = "store_read_only"
    status = 503
    es = "No se puede escribir en {path}: da permiso de escritura a la carpeta o cambia MODELS_DIR."
    en = "{path} cannot be written: make the folder writable, or change MODELS_DIR."


class DiskFull(InspectionError):
    code = "disk_full"
    status = 507
    es = "No queda espacio en disco para {path}: libera espacio y repite. El modelo anterior sigue intacto."
    en = "There is no disk space left for {path}: free some and try again. The former model is untouched."


class InspectionNotFound(InspectionError):
    code = "inspection_not_found"
    status = 404
    es = "No hay ninguna inspección {id}: usa el inspection_id que respondió /infer, o búscala en /inspections."
    en = "There is no inspection {id}: send the inspection_id that /infer answered, or look for it in /inspections."


class ImageNotKept(InspectionError):
    code = "image_not_kept"
    status = 404
    es = "No hay imagen de la inspección {id}: {reason}."
    en = "There is no image of the inspection {id}: {reason}."


class RecordsOff(InspectionError):
    code = "records_off"
    status = 404
    es = "Este servicio no guarda las inspecciones (RESULTS_DB=none): indica una base de datos en RESULTS_DB."
    en = "This service keeps no inspections (RESULTS_DB=none): name a database in RESULTS_DB."


class NotRecorded(InspectionError):
    code = "not_recorded"
    status = 503
    es = "No se ha podido guardar: {reason}. Reintenta en {retry_after} s."
    en = "It could not be recorded: {reason}. Try again in {retry_after} s."


class RecordsUnavailable(InspectionError):
    code = "records_unavailable"
    status = 503
    es = "No se pueden consultar las inspecciones guardadas: {reason}. Reintenta en {retry_after} s."
    en = "The recorded inspections cannot be read: {reason}. Try again in {retry_after} s."


class StartupError(InspectionError):
    code = "startup_error"
    es = "El servicio no puede arrancar: {reason}"
    en = "The service cannot start: {reason}"


class WeightsUnavailable(StartupError):
    code = "weights_unavailable"
    es = (
        "No se encuentran los pesos de {model}: {reason}. Copia el fichero .safetensors o .pth a esta máquina e "
        "indica su ruta en WEIGHTS (docs/DEPLOYMENT.md explica cómo)."
    )
    en = (
        "The weights of {model} cannot be had: {reason}. Copy the .safetensors or .pth file to this machine and "
        "set WEIGHTS to its path (docs/DEPLOYMENT.md says how)."
    )


class BackendUnavailable(StartupError):
    code = "backend_unavailable"
    es = "{option}={value} necesita el paquete {package}: instálalo o usa {option}=auto."
    en = "{option}={value} needs the package {package}: install it, or use {option}=auto."


class AddressUnavailable(StartupError):
    code = "address_unavailable"
    es = "No se puede escuchar en {host}:{port} ({reason}): cierra el programa que lo usa o elige otro PORT (o HOST)."
    en = "{host}:{port} cannot be listened on ({reason}): close what uses it, or choose another PORT or HOST."


class InvalidSettings(StartupError):
    code = "invalid_settings"
    es = "La configuración no es válida: {reason}"
    en = "The settings are not valid: {reason}"


class RecordsRefused(StartupError):
    code = "records_refused"
    es = "No se puede usar la base de datos de las inspecciones (RESULTS_DB): {reason}."
    en = "The database of the inspections (RESULTS_DB) cannot be used: {reason}."
