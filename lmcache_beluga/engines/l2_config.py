"""What an operator may say about the L2 adapter: ``adapter_params`` in ``--l2-adapter``."""

from __future__ import annotations

from typing import Any

from lmcache.v1.distributed.l2_adapters.config import L2AdapterConfigBase

from lmcache_beluga.config import SETTINGS, Settings


class BelugaL2AdapterConfig(L2AdapterConfigBase):  # type: ignore[misc]
    """The settings of the package, by their names without ``beluga.``: ``{"pool": ...}``.

    As everywhere, a variable of the environment (``BELUGA_POOL``) overrides a setting.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> BelugaL2AdapterConfig:
        """The configuration in ``adapter_params``.

        Raises SettingError (a ValueError, which ends LMCache's start) for a name that is unknown,
        a value that cannot be read, settings that contradict each other, and without a pool.
        """
        settings = Settings.from_names(
            {name: value for name, value in d.items() if name != "type"}, "adapter_params"
        )
        settings.pool_arguments()
        return cls(settings)

    @classmethod
    def help(cls) -> str:
        """The settings, for LMCache to print."""
        lines = [
            f"- {setting.name} ({setting.kind.name}, default {setting.default_text}): "
            f"{setting.meaning}"
            for setting in SETTINGS
        ]
        return "\n".join(["adapter_params of lmcache_beluga.BelugaL2Adapter:", *lines])
