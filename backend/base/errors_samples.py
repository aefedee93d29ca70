"""What can go wrong with stored samples, growing memories and long work.

InspectionError
├── BadRequest (400)
│   ├── InvalidLabel · InvalidFilename · MetasMismatch · MetasNotJson · MetaInvalid · BrokenImages
│   └── NotEnoughSamples · NgRequired · OnlyImage
├── SampleNotFound · DatasetNotFound · ProgressNotFound (404)
├── MemoryMismatch (409)
└── DatasetsFull (507)
"""

from __future__ import annotations

from backend.base.errors import BadRequest, InspectionError


class InvalidLabel(BadRequest):
    code = "invalid_label"
    es = "La etiqueta {value} no existe: usa ok o ng."
    en = "There is no label {value}: use ok or ng."


class InvalidFilename(BadRequest):
    code = "invalid_filename"
    es = "filename no es válido ({value}): envía el nombre tal como lo da /datasets/list, sin carpetas."
    en = "filename is not valid ({value}): send the name as /datasets/list gives it, without folders."


class MetasMismatch(BadRequest):
    code = "metas_mismatch"
    es = "Hay {metas} partes metas para {images} imágenes: envía una por imagen, en el mismo orden, o ninguna."
    en = "There are {metas} metas parts for {images} images: send one for each image, in the same order, or none."


class MetasNotJson(BadRequest):
    code = "metas_not_json"
    es = "metas número {number} ({name}) no es un objeto JSON."
    en = "metas number {number} ({name}) is not a JSON object."


class MetaInvalid(BadRequest):
    code = "metas_invalid"
    es = "metas de {name}: {field} tiene el valor {value}; se espera {expected}."
    en = "metas of {name}: {field} has the value {value}; expected {expected}."


class BrokenImages(BadRequest):
    code = "broken_images"
    es = "No se ha guardado ninguna imagen de {total}. Las que no se pueden usar: {count}. {reasons}"
    en = "No image was stored, of {total}. Those that cannot be used: {count}. {reasons}"


class NotEnoughSamples(BadRequest):
    code = "not_enough_samples"
    es = "{key}: muestras OK que sirven: {n}; hacen falta {wanted}. Sube más a /datasets/ok/upload."
    en = "{key}: usable OK samples: {n}; needed: {wanted}. Upload more to /datasets/ok/upload."


class NgRequired(BadRequest):
    code = "ng_required"
    es = "{key} no tiene muestras NG y se pidió calibrar con ellas: envíalas a /send_ng o usa require_ng=false."
    en = "{key} has no NG samples and calibrating with them was asked for: send some to /send_ng, or require_ng=false."


class OnlyImage(BadRequest):
    code = "only_image_of_memory"
    es = "{name} es la única imagen de la memoria: sin ella no queda con qué compararla."
    en = "{name} is the only image of the memory: without it there is nothing to compare it with."


class SampleNotFound(InspectionError):
    code = "sample_not_found"
    status = 404
    es = "No hay ninguna muestra {label}/{name} de {key}: /datasets/list dice las que hay."
    en = "There is no sample {label}/{name} of {key}: /datasets/list says which there are."


class DatasetNotFound(InspectionError):
    code = "dataset_not_found"
    status = 404
    es = "No hay muestras de {key}: súbelas a /datasets/ok/upload o revisa role_id, roi_id y la receta."
    en = "There are no samples of {key}: upload some to /datasets/ok/upload, or check role_id, roi_id and recipe."


class ProgressNotFound(InspectionError):
    code = "progress_not_found"
    status = 404
    es = "No hay ningún trabajo con el identificador {job}: es el X-Request-Id que envió quien lo pidió."
    en = "There is no work with the identifier {job}: it is the X-Request-Id that its client sent."


class MemoryMismatch(InspectionError):
    code = "memory_mismatch"
    status = 409
    es = (
        "La memoria de {key} no puede crecer con estas imágenes: {field} de la memoria es {expected} y el de la "
        "petición {got}. Envía memory_fit=false para sustituirla."
    )
    en = (
        "The memory of {key} cannot grow with these images: its {field} is {expected} and the request's {got}. "
        "Send memory_fit=false to replace it."
    )


class DatasetsFull(InspectionError):
    code = "datasets_full"
    status = 507
    es = (
        "Las muestras ocupan {used:.2f} GB de los {limit:g} de DATASETS_MAX_GB y no caben {wanted:.2f} más: "
        "borra algunas o sube el límite. No se ha guardado ni borrado nada."
    )
    en = (
        "The samples take {used:.2f} GB of DATASETS_MAX_GB's {limit:g} and {wanted:.2f} more do not fit: "
        "delete some, or raise the limit. Nothing was stored or deleted."
    )
