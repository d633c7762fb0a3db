"""Label values of all masks: 0 background, 1..C classes, 255 ignore (docs/method.md, Task)."""

BACKGROUND = 0
IGNORE = 255
