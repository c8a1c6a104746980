"""What the health port serves is what its OpenAPI description says, for whatever schemathesis thinks of to ask."""

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
    """One instance that is ready, one that has failed, one that nothing is known of."""
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
def test_every_answer_is_as_described(case: schemathesis.Case[Any]) -> None:
    response = case.call()
    # A name may be drawn that there is; 503 is what a service that is not ready is meant to give.
    case.validate_response(response, excluded_checks=[not_a_server_error])
    assert response.status_code < 500 or response.status_code == 503


def test_names_that_there_are_are_described_too() -> None:
    operation = schema["/health/services/{name}"]["GET"]
    for name, status in (("ready", 200), ("failed", 503), ("unknown", 503), ("none", 404)):
        case = operation.Case(path_parameters={"name": name})
        response = case.call()
        # 503 is what a service that is not ready is meant to give.
        case.validate_response(response, excluded_checks=[not_a_server_error])
        assert response.status_code == status
