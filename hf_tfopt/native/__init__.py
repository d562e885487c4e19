"""The few loops that are written in C++, and what compiles them; nothing depends on them."""
