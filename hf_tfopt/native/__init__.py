"""The few loops that are written in C++, each beside a form without, and what compiles them."""
