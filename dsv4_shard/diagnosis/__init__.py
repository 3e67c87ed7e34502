"""An engine's error message or log → the rule that broke, in numbers, and how to fix it."""
