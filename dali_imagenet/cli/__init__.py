"""The commands of `dali-imagenet`, a module each: NAME, HELP, add_arguments(parser) and run(options) -> int.

The first line of a module's docstring is its description, the rest, where there is one, stands below the options. What
costs, torch above all, is imported in `run`: help and wrong options shall not wait for it. `WORDS`, where a module has
it, says what arguments of the library are called there, beside those that bear an option's own name. `ON_ITS_OWN`: it
logs, and shows its errors, by itself; `OWN_PARSER`: all words after its name, --help too, are its own matter.
"""
