"""Named tasks: an operator, a noise level and how to make both for an image."""

if __name__ != "invsolve.problems":
    raise ImportError(f"import invsolve.problems, not {__name__!r}")
