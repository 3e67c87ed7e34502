"""The supported model families: config schema, tensor roles, tensor names in every dialect, shapes."""
