"""Requests drawn from the OpenAPI schema, those it allows and those it does not."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from backend.app import create_app
from tests.api.service import client_of
from tests.parts import quick_settings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenApiSchema]:
    app = create_app(quick_settings(tmp_path_factory.mktemp("schema"), max_upload_mb=1, max_request_mb=4))
    with client_of(app):
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_answer_is_one_that_the_schema_foresees(schema: Any) -> None:
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:
        # There are dozens of operations: each is drawn an eighth of the examples that a property has.
        @settings(max_examples=settings().max_examples // 8, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def drawn(case: Any) -> None:
            answer = case.call()
            if case.operation.path.startswith("/predict") and answer.status_code == 503:
                return  # there is no memory bank
            case.validate_response(answer, checks=CHECKS)

        drawn()
