"""Configuration keys of additions from outside the package, such as the weight of another loss."""

CONFIG_KEYS = {}
"""GROUP.NAME -> its default. `rml_jax.config.default_config` adds these keys to its own."""
