"""`citadel-llm pull`: which instances want which models, one fetched after another."""

import os
import sys
from collections.abc import Sequence

import click

from hxp_enterprise_llm.services.core.service_manager import engine
from hxp_enterprise_llm.services.core.service_manager.config import ServiceManagerConfig
from hxp_enterprise_llm.utils import config as settings
from hxp_enterprise_llm.utils.errors import CitadelError, NoSuchInstance


def pull(names: Sequence[str] | None, verify: bool, token: str | None) -> None:
    """Fetch, or verify, the models of instances; of all with a hub id if `names` is None.

    As root it goes on as the services' user. Raises PullFailed, NoSuchInstance or SettingsRefused.
    """
    wanted: dict[str, str] = {}
    for name in names if names is not None else settings.instance_names():
        if not settings.exists(name):
            raise NoSuchInstance(f"there is no instance {name!r}; citadel-llm list shows those that there are")
        config, _ = settings.load(name)
        if not config.model.startswith("/"):
            wanted[config.model] = name
            # The hub's library reads these when it is imported; a mirror is named in the instance's file.
            os.environ.update({key: value for key, value in config.environment.items() if key.startswith("HF_")})
        elif names is not None:
            raise CitadelError(f"{name}: MODEL={config.model} is a directory of this host; there is nothing to fetch")
    from hxp_enterprise_llm.models import hub

    hub.drop_privileges(ServiceManagerConfig.load().user)
    os.environ["HF_HUB_OFFLINE"] = "0"
    for repository, name in wanted.items():
        if verify:
            wrong = hub.verify(repository, engine.MODELS, token)
            if wrong:
                raise CitadelError(
                    f"{repository}: missing or damaged: {', '.join(wrong)}; delete the model and pull again"
                )
            click.echo(f"{name}: {repository} is as on the hub")
            continue
        print(f"{name}: fetching {repository}", file=sys.stderr)
        click.echo(f"{name}: {hub.pull(repository, engine.MODELS, token)}")
