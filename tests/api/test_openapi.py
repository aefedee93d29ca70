"""The OpenAPI document is part of the contract: it changes on purpose or not at all.

After a change that is meant: python -m tests.api.test_openapi, and read the difference before committing it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from backend.app import create_app
from backend.extractors.texture import TextureFeatures
from tests.parts import quick_settings

SNAPSHOT = Path(__file__).resolve().parent.parent / "data" / "openapi.json"
CONTRACT = {"/health": "get", "/fit_ok": "post", "/calibrate_ng": "post", "/infer": "post"}


def document(root: Path) -> dict[str, Any]:
    """The document of the four contract routes, less its version."""
    said = create_app(quick_settings(root, contract_only=True), TextureFeatures(112)).openapi()
    said["info"].pop("version")
    return json.loads(json.dumps(said))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return document(tmp_path_factory.mktemp("openapi"))


def test_the_contract_is_as_it_was(said: dict[str, Any]) -> None:
    assert said == json.loads(SNAPSHOT.read_text("utf-8")), f"if it is meant: {(__doc__ or '').splitlines()[2]}"


def test_docs_can_be_used_as_a_client(said: dict[str, Any]) -> None:
    assert {path: next(iter(methods)) for path, methods in said["paths"].items()} == CONTRACT
    for path, methods in said["paths"].items():
        (route,) = methods.values()
        assert route["summary"] and route["description"]
        answer = route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        assert said["components"]["schemas"][answer]["example"], path
        assert "ErrorBody" in json.dumps(route["responses"]["400"])
    form = said["components"]["schemas"]["Body_infer_infer_post"]
    assert set(form["required"]) == {"role_id", "roi_id", "mm_per_px", "image"}
    assert form["properties"]["image"]["type"] == "string"


def test_docs_fills_no_form_with_the_word_string(tmp_path: Path) -> None:
    """The page writes "string" into each text that has no example: as a note, a recipe or a role it would be kept."""
    said = create_app(quick_settings(tmp_path), TextureFeatures(112)).openapi()
    schemas = said["components"]["schemas"]
    without = []
    for path, methods in said["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {})
        kind = next(iter(body), "")  # the one that the page shows first
        schema = body.get(kind, {}).get("schema", {})
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        if kind == "application/json" and "example" not in schema:
            texts = [own for own in schema["properties"].values() if "examples" not in own]
            without += [path] if any('"string"' in json.dumps(own) for own in texts) else []
        elif kind:
            own = {n: p for n, p in schema["properties"].items() if '"binary"' not in json.dumps(p)}
            text = {n for n, p in own.items() if '"string"' in json.dumps(p) and "contentMediaType" not in p}
            without += [
                f"{path} {name}"
                for name in sorted(text)
                if kind != "application/json" and not own[name].get("examples")
            ]
    assert without == []


def test_the_examples_fit_their_own_schemas() -> None:
    from backend.api import schemas

    for name in ("Health", "FitOkResponse", "CalibrateRequest", "CalibrateResponse", "InferResponse", "ErrorBody"):
        model = getattr(schemas, name)
        model.model_validate(model.model_config["json_schema_extra"]["example"])


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(document(Path()), indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
