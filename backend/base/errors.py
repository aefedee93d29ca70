"""Everything that can go wrong. Each class has a stable code, and carries the values named after the colon.

Codes and values are all that is known here: the HTTP status and the sentences of each code are in
`backend.api.catalogue`, and `str(error)` is for logs. A new error takes four steps: a line of this tree, its class
below, its entry in the catalogue, and its row in docs/API_REFERENCE.md. An error with `retry_after` (seconds) is
answered with that header.

InspectionError
├── BadRequest: reason
│   ├── BadForm
│   ├── InvalidValue: field, value, expected
│   ├── FieldTwice: field
│   ├── InvalidId: field, value
│   ├── RecipeInvalid: value
│   ├── NoImages
│   ├── BadImage: name
│   │   ├── EmptyFile: name
│   │   ├── UndecodableImage: name, reason
│   │   ├── ImageTooSmall: name, width, height, limit
│   │   ├── ImageTooLarge: name, width, height, limit
│   │   ├── TooManyTokens: name, width, height, tokens, limit
│   │   ├── EmptyUpload
│   │   └── UndecodableUpload: why
│   ├── InvalidShape
│   │   ├── ShapeNotJson
│   │   ├── ShapeUnknownKind: kind, known
│   │   ├── ShapeUnknownKeys: kind, keys, known
│   │   ├── ShapeBadNumber: kind, field, rule
│   │   ├── ShapeInverted: r, r_inner
│   │   └── MaskEmpty: width, height
│   ├── MemoryNotFound: key
│   ├── TokenGridMismatch: got, expected, name
│   ├── ExtractorMismatch: key, theirs, ours
│   ├── PartNotAlone: model
│   ├── ShapeNeeded: name
│   ├── SetNotUnderstood: path
│   ├── InvalidLabel: value
│   ├── InvalidFilename: value
│   ├── MetasMismatch: metas, images
│   ├── MetasNotJson: number, name
│   ├── SidecarNotJson: name
│   ├── MetaInvalid: name, field, value, expected
│   ├── BrokenImages: total, count, reasons
│   ├── NotEnoughSamples: key, n, wanted, reasons
│   ├── StudyNotUsable: path, reason
│   ├── NgRequired: key
│   ├── ThresholdAndPromise
│   ├── CalibrationNeeded: key
│   ├── GoodPartsRejected: key, n, passed, wanted
│   ├── OnlyImage: name
│   └── BundleRefused: name, reason
├── InvalidFields: reason
├── Unauthorized
├── LoopbackOnly
├── HostRefused: host
├── OriginRefused: origin
├── ReadOnlyKey
├── ReadOnlyReplica
├── NotFound: path
├── MethodNotAllowed: path, method
├── SampleNotFound: key, label, name
├── DatasetNotFound: key
├── ProgressNotFound: job
├── CertificateNotFound: key
├── VersionNotFound: key, version
├── VersionUnusable: key, version, theirs, ours
├── GoldenFlipped: key, samples
├── GoldenStopped: key, samples, retry_after
├── GoldenImageGone: name
├── NothingToTeach
├── TaughtIsBad: name, reason
├── TaughtElsewhere: id, theirs, key
├── TeachingRefused: key, parts
├── InspectionNotFound: id
├── ImageNotKept: id, reason
├── RecordsOff
├── MemoryMismatch: key, field, expected, got
├── ModelExists: key
├── PackDisagrees: key, name, theirs, ours, settings
├── IdTwin: field, value, twin
├── EncodedBody: encoding
├── BodyTimeout: seconds
├── FileTooLarge: name, limit
├── RequestTooLarge: limit, setting
├── TooManyRequests: limit, retry_after
├── Cancelled
├── TimedOut: seconds, retry_after
├── QueueFull: waiting, retry_after
├── NotReady: retry_after
├── FitInProgress: key, retry_after
├── DeviceOutOfMemory: retry_after
├── OutOfMemory: retry_after
├── StorageFailed: path, reason, retry_after
│   ├── DiskFull: path
│   └── ReadOnlyStore: path
├── DatasetsFull: used, limit, wanted
├── NotRecorded: reason, retry_after
├── RecordsUnavailable: reason, retry_after
├── DriftNewer: version, known
├── BankNotFound: path
├── BankMismatch: theirs, ours
├── ResNetUnavailable: model, reason
├── RoiUnreadable: path
├── ServerFault
│   ├── ExtractorFault: model
│   └── DamagedFile: path, reason, remedy
└── StartupError: reason
    ├── WeightsUnavailable: model, reason
    ├── BackendUnavailable: option, value, package
    ├── ExportDisagrees: name, gap
    ├── NotExported: model, reason
    ├── AddressUnavailable: host, port, reason
    ├── InvalidSettings: reason
    └── RecordsRefused: reason
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from backend.base.messages import brief


class InspectionError(Exception):
    """Base of all errors; it is never raised itself."""

    code: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        self.values = values
        super().__init__()

    def __str__(self) -> str:
        return brief(self.code, self.values)


def error_of(code: str, values: Mapping[str, Any]) -> InspectionError:
    """The error of that code with these values, as somebody wrote it down. One that this version lacks is bare."""
    kinds: list[type[InspectionError]] = [InspectionError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    found = next((kind for kind in kinds[1:] if kind.code == code), BadRequest)
    return found(**values)


class BadRequest(InspectionError):
    code = "bad_request"


class BadForm(BadRequest):
    code = "bad_form"


class InvalidValue(BadRequest):
    code = "invalid_value"


class FieldTwice(BadRequest):
    code = "field_twice"


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of these pairs (json's `object_pairs_hook`). Raises FieldTwice: a key comes twice."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise FieldTwice(field=name[:40])
        made[name] = value
    return made


class InvalidId(BadRequest):
    code = "invalid_id"


class RecipeInvalid(BadRequest):
    code = "invalid_recipe"


class NoImages(BadRequest):
    code = "no_images"


class BadImage(BadRequest):
    code = "bad_image"


class EmptyFile(BadImage):
    code = "empty_file"


class UndecodableImage(BadImage):
    code = "unreadable_image"


class ImageTooSmall(BadImage):
    code = "image_too_small"


class ImageTooLarge(BadImage):
    code = "image_too_large"


class TooManyTokens(BadImage):
    code = "too_many_tokens"


class EmptyUpload(BadImage):
    code = "empty_upload"


class UndecodableUpload(BadImage):
    code = "unreadable_upload"


class InvalidShape(BadRequest):
    code = "invalid_shape"


class ShapeNotJson(InvalidShape):
    code = "shape_not_json"


class ShapeUnknownKind(InvalidShape):
    code = "shape_unknown_kind"


class ShapeUnknownKeys(InvalidShape):
    code = "shape_unknown_keys"


class ShapeBadNumber(InvalidShape):
    code = "shape_bad_number"


class ShapeInverted(InvalidShape):
    code = "shape_inverted"


class MaskEmpty(InvalidShape):
    code = "mask_empty"


class MemoryNotFound(BadRequest):
    code = "memory_not_found"


class TokenGridMismatch(BadRequest):
    code = "token_grid_mismatch"


class ExtractorMismatch(BadRequest):
    code = "extractor_mismatch"


class PartNotAlone(BadRequest):
    code = "part_not_alone"


class ShapeNeeded(BadRequest):
    code = "shape_needed"


class SetNotUnderstood(BadRequest):
    code = "set_not_understood"


class InvalidLabel(BadRequest):
    code = "invalid_label"


class InvalidFilename(BadRequest):
    code = "invalid_filename"


class MetasMismatch(BadRequest):
    code = "metas_mismatch"


class MetasNotJson(BadRequest):
    code = "metas_not_json"


class SidecarNotJson(BadRequest):
    code = "sidecar_not_json"


class MetaInvalid(BadRequest):
    code = "metas_invalid"


class BrokenImages(BadRequest):
    code = "broken_images"


class NotEnoughSamples(BadRequest):
    code = "not_enough_samples"


class StudyNotUsable(BadRequest):
    code = "study_not_usable"


class NgRequired(BadRequest):
    code = "ng_required"


class ThresholdAndPromise(BadRequest):
    code = "threshold_and_promise"


class CalibrationNeeded(BadRequest):
    code = "calibration_needed"


class GoodPartsRejected(BadRequest):
    code = "good_parts_rejected"


class OnlyImage(BadRequest):
    code = "only_image_of_memory"


class BundleRefused(BadRequest):
    code = "bundle_refused"


class InvalidFields(InspectionError):
    code = "validation_error"


class Unauthorized(InspectionError):
    code = "unauthorized"


class LoopbackOnly(InspectionError):
    code = "loopback_only"


class HostRefused(InspectionError):
    code = "host_refused"


class OriginRefused(InspectionError):
    code = "origin_refused"


class ReadOnlyKey(InspectionError):
    code = "read_only_key"


class ReadOnlyReplica(InspectionError):
    code = "read_only_replica"


class NotFound(InspectionError):
    code = "not_found"


class MethodNotAllowed(InspectionError):
    code = "method_not_allowed"


class SampleNotFound(InspectionError):
    code = "sample_not_found"


class DatasetNotFound(InspectionError):
    code = "dataset_not_found"


class ProgressNotFound(InspectionError):
    code = "progress_not_found"


class CertificateNotFound(InspectionError):
    code = "certificate_not_found"


class ModelExists(InspectionError):
    code = "model_exists"


class PackDisagrees(InspectionError):
    code = "pack_disagrees"


class VersionNotFound(InspectionError):
    code = "version_not_found"


class VersionUnusable(InspectionError):
    code = "version_unusable"


class GoldenFlipped(InspectionError):
    code = "golden_flipped"


class GoldenStopped(InspectionError):
    code = "golden_stopped"


class GoldenImageGone(InspectionError):
    code = "golden_image_gone"


class NothingToTeach(InspectionError):
    code = "nothing_to_teach"


class TaughtIsBad(InspectionError):
    code = "taught_is_bad"


class TaughtElsewhere(InspectionError):
    code = "taught_elsewhere"


class TeachingRefused(InspectionError):
    code = "teaching_refused"


class IdTwin(InspectionError):
    code = "id_twin"


class EncodedBody(InspectionError):
    code = "encoded_body"


class InspectionNotFound(InspectionError):
    code = "inspection_not_found"


class ImageNotKept(InspectionError):
    code = "image_not_kept"


class RecordsOff(InspectionError):
    code = "records_off"


class MemoryMismatch(InspectionError):
    code = "memory_mismatch"


class BodyTimeout(InspectionError):
    code = "body_timeout"


class FileTooLarge(InspectionError):
    code = "file_too_large"


class RequestTooLarge(InspectionError):
    code = "request_too_large"


class TooManyRequests(InspectionError):
    code = "too_many_requests"


class Cancelled(InspectionError):
    code = "cancelled"


class TimedOut(InspectionError):
    code = "timed_out"


class QueueFull(InspectionError):
    code = "queue_full"


class NotReady(InspectionError):
    code = "not_ready"


class FitInProgress(InspectionError):
    code = "fit_in_progress"


class DeviceOutOfMemory(InspectionError):
    code = "device_out_of_memory"


class OutOfMemory(InspectionError):
    code = "out_of_memory"


class StorageFailed(InspectionError):
    code = "storage_failed"


class DiskFull(StorageFailed):
    code = "disk_full"


class ReadOnlyStore(StorageFailed):
    code = "store_read_only"


class DatasetsFull(InspectionError):
    code = "datasets_full"


class NotRecorded(InspectionError):
    code = "not_recorded"


class RecordsUnavailable(InspectionError):
    code = "records_unavailable"


class DriftNewer(InspectionError):
    code = "drift_newer"


class BankNotFound(InspectionError):
    code = "bank_not_found"


class BankMismatch(InspectionError):
    code = "bank_mismatch"


class ResNetUnavailable(InspectionError):
    code = "resnet_unavailable"


class RoiUnreadable(InspectionError):
    code = "roi_unreadable"


class ServerFault(InspectionError):
    code = "internal_error"


class ExtractorFault(ServerFault):
    code = "extractor_fault"


class DamagedFile(ServerFault):
    code = "artifact_damaged"


class StartupError(InspectionError):
    code = "startup_error"


class WeightsUnavailable(StartupError):
    code = "weights_unavailable"


class BackendUnavailable(StartupError):
    code = "backend_unavailable"


class ExportDisagrees(StartupError):
    code = "export_disagrees"


class NotExported(StartupError):
    code = "not_exported"


class AddressUnavailable(StartupError):
    code = "address_unavailable"


class InvalidSettings(StartupError):
    code = "invalid_settings"


class RecordsRefused(StartupError):
    code = "records_refused"
