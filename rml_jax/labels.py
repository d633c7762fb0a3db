"""The numbers every mask of the project uses: 0 background, 1..C classes, 255 ignore (docs/method.md, Task)."""

BACKGROUND = 0
IGNORE = 255
