"""The health port's answers match its OpenAPI description for all requests that schemathesis generates."""

import asyncio
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from hxp_enterprise_llm.monitoring import web
from hxp_enterprise_llm.monitoring.fleet import Fleet
from hxp_enterprise_llm.monitoring.store import Store
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


async def answers(_: Address) -> str:
    return ""


def fleet() -> Fleet:
    """An instance that is ready, one that has failed, and one in an unknown state."""
    found = Fleet(Store(Path("/nonexistent/monitor.sqlite")), answers, "/nonexistent")
    found.connected("")
    found.present({"ready", "failed", "unknown"})
    stopped = {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": 70, "ExecMainExitTimestamp": 1}

    found.instances["ready"].config = ServiceConfigSchema(name="ready", model="/m", port=11500)

    async def tell() -> None:
        found.changed("ready", {"ActiveState": "activating"}, 1)
        found.changed("ready", {"ActiveState": "active", "StateChangeTimestamp": 10**15, "MainPID": 7}, 1)
        found.changed("failed", stopped, 1)
        await found.probed()

    asyncio.run(tell())
    return found


schema = schemathesis.openapi.from_asgi("/openapi.json", web.application(fleet(), "1.0"))


@schema.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_response_matches_the_openapi_schema(case: schemathesis.Case[Any]) -> None:
    response = case.call()
    # The generated name may exist; a service that is not ready answers 503, as intended.
    case.validate_response(response, excluded_checks=[not_a_server_error])
    assert response.status_code < 500 or response.status_code == 503


def test_responses_for_existing_names_match_the_schema() -> None:
    operation = schema["/health/services/{name}"]["GET"]
    for name, status in (("ready", 200), ("failed", 503), ("unknown", 503), ("none", 404)):
        case = operation.Case(path_parameters={"name": name})
        response = case.call()
        # A service that is not ready answers 503, as intended.
        case.validate_response(response, excluded_checks=[not_a_server_error])
        assert response.status_code == status
