"""Types of the arguments of the command: names of instances and keys, and assignments."""

import re

import click
from click.shell_completion import CompletionItem

from hxp_enterprise_llm.settings import keys
from hxp_enterprise_llm.settings.units import PREFIX, SUFFIX
from hxp_enterprise_llm.settings.values import instance_names


class InstanceName(click.ParamType[str]):
    """The name of an instance, or of its unit; the shell completes the names of instances."""

    name = "instance"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name of the instance: `test`, also for citadel-llm@test.service and citadel-llm@test."""
        return value.removeprefix(PREFIX).removesuffix(SUFFIX) if value.startswith(PREFIX) else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The instances that have a settings file."""
        return [CompletionItem(name) for name in instance_names() if name.startswith(incomplete)]


class SettingKey(click.ParamType[str]):
    """A key of a settings file; the shell completes the keys that can be changed."""

    name = "key"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Letters, digits and _, no digit first."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            self.fail(f"{value!r} is not a key: write letters, digits and _, and no digit first", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Every key of an instance's file."""
        return [CompletionItem(key) for key in keys.INSTANCE_KEYS if key.startswith(incomplete)]


class Assignment(click.ParamType[tuple[str, str]]):
    """KEY=VALUE; the shell completes the key."""

    name = "assignment"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """The key and the value."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals:
            self.fail(f"{value!r}: write KEY=VALUE", param, ctx)
        return SettingKey().convert(key, param, ctx), text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Every key of an instance's file, with the equals sign."""
        return [CompletionItem(f"{key}=") for key in keys.INSTANCE_KEYS if key.startswith(incomplete)]


class KeyName(click.ParamType[str]):
    """The name of an API key, never empty: keys written by hand have no name, and revoke must not match all of them."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """A word, as in a settings file."""
        try:
            return keys.word(value)
        except ValueError as error:
            self.fail(f"{value!r}: write {error}", param, ctx)
