"""How values are read from untrusted text and shown as text: strict JSON, escaping, units, suggestions."""
