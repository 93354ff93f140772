"""The trigger menu: which events are accepted, by which paths, and how often (docs/menu.md)."""
