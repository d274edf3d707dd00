"""Seven questions about names, functions, classes, strings and files.

Answers are fixed tokens, so where the answer is a name it is one of two names that all pools share: `name` and `type`
in `class_init`, `x` and `y` in `var_swap`; what stands around them is not shared. Members of a pair have the same
number of tokens, which decides many of the choices below. Knows templates only.
"""

from __future__ import annotations

from openwork.tasks.python_specs.spec import TaskSpec, swap

DEFINITIONS: dict[str, TaskSpec] = {
    "set_or_string_fixedvarname": TaskSpec(
        # The paper's variable is `current`, which is a word of a pool here.
        about="add to a variable that is always called total, as its type allows",
        answers=(".add", " +="),
        switches={"K": swap("set", "str"), "L": swap("str", "set")},
        rest=("(<i>)", " <v>"),
        templates={
            "train": (
                "total = <K>()\ntotal",
                "total = <K>()\n<y> = <i>\ntotal",
                "total = <K>()\nif <y>:\n    total",
                "total = <K>()\nfor <y> in <z>:\n    total",
                "total = <K>()\n<f>(<y>)\ntotal",
                "total = <K>()\nwhile <y>:\n    total",
            ),
            "discover": (
                "total = <K>()\n<y> = <f>(<z>)\ntotal",
                "total = <K>()\nfor <y> in <f>(<z>):\n    total",
                "<y> = <i>\ntotal = <K>()\ntotal",
                "total = <K>()\nif <y> == <i>:\n    total",
                "total = <K>()\nif not <y>:\n    total",
                "total = <K>()\n<y> += <i>\ntotal",
            ),
            "verify": (
                "total = <K>()\n<y> = <z> + <i>\ntotal",
                "total = <K>()\nwith <y>:\n    total",
                "import <y>\ntotal = <K>()\ntotal",
                "total = <K>()\nfor <y> in <z>.<f>():\n    total",
            ),
            "ood": (
                "<y> = <L>()\ntotal = <K>()\n<f>(<z>)\ntotal",
                "def <f>(<y>, <z>):\n    total = <K>()\n    for <w> in <z>:\n        if <w>:\n            total",
                "total = <K>()\n<y> = [<i>, <j>]\n<z> = <f>(<y>)\ntotal",
                "class <f>:\n    def <g>(self):\n        <y> = <L>()\n        total = <K>()\n        total",
            ),
            "explain": (
                "total = <K>()\n<y>.<f>()\ntotal",
                "def <f>(<y>):\n    total = <K>()\n    total",
                "total = <K>()\n<y>[<i>] = <z>\ntotal",
            ),
        },
    ),
    "class_init": TaskSpec(
        about="copy the name of the attribute after the = of self.name = name; the other is that of another argument",
        answers=(" name", " type"),
        switches={"A": swap("name", "type"), "B": swap("type", "name")},
        rest=("", ""),
        templates={
            "train": (
                "class <f>:\n    def __init__(self, name, type):\n        self.<A> =",
                "class <f>:\n    def __init__(self, type, name):\n        self.<A> =",
                "class <f>:\n    def __init__(self, name, type):\n        self.<B> = <B>\n        self.<A> =",
                "class <f>:\n    def __init__(self, <x>, name, type):\n        self.<x> = <x>\n        self.<A> =",
                "class <f>(<g>):\n    def __init__(self, type, name):\n        self.<A> =",
                "class <f>:\n    def __init__(self, name, type, <x>):\n        self.<B> = <B>\n        self.<A> =",
            ),
            "discover": (
                "class <f>:\n    def __init__(self, type, name, <x>):\n        self.<x> = <x>\n        self.<A> =",
                "class <f>:\n    def __init__(self, name, <x>, type):\n        self.<A> =",
                "class <f>(<g>):\n    def __init__(self, name, type):\n        self.<B> = <B>\n        self.<A> =",
                "class <f>:\n    def __init__(self, <x>, type, name):\n        self.<A> =",
                "class <f>(<g>):\n    def __init__(self, <x>, name, type):\n        self.<A> =",
            ),
            "verify": (
                "class <f>(<g>):\n    def __init__(self, type, name, <x>):\n        self.<A> =",
                "class <f>:\n    def __init__(self, <x>, type, name):\n        self.<x> = <x>\n        self.<B> = <B>\n"
                "        self.<A> =",
                "class <f>:\n    def __init__(self, type, <x>, name):\n        self.<x> = <x>\n        self.<A> =",
                "<x> = <y>\nclass <f>:\n    def __init__(self, name, type):\n        self.<A> =",
            ),
            "ood": (
                "class <f>:\n    def __init__(self, name, type, <x>):\n        self.<x> = <B>\n        self.<A> =",
                "class <f>:\n    def __init__(self, <x>, <y>, type, name):\n        self.<y> = <y>\n"
                "        self.<x> = <x>\n        self.<B> = <B>\n        self.<A> =",
                "def <f>(<x>):\n    class <g>:\n        def __init__(self, name, type):\n"
                "            self.<B> = <B>\n            self.<A> =",
                "class <f>:\n    def <g>(self):\n        return self.<B>\n\n    def __init__(self, name, type):\n"
                "        self.<A> =",
            ),
            "explain": (
                "class <f>:\n    def __init__(self, type, <x>, <y>, name):\n        self.<B> = <B>\n        self.<A> =",
                "class <f>(<g>):\n    def __init__(self, <x>, type, name):\n        self.<x> = <x>\n        self.<A> =",
                "if <x>:\n    class <f>:\n        def __init__(self, name, type):\n            self.<A> =",
            ),
        },
    ),
    "final_kwarg": TaskSpec(
        # "=None" is two tokens here: the sign alone is the answer.
        about="give the last argument a default where one before it has one, or close the list of arguments",
        answers=("=", "):"),
        switches={"K": swap("=", ", ")},
        rest=("<i>):\n    pass", "\n    pass"),
        templates={
            "train": (
                "def <f>(<x><K><y>, <z>",
                "def <f>(<v>, <x><K><y>, <z>",
                "def <f>(<x><K><y>, <v><K><w>, <z>",
                "<w> = <i>\ndef <f>(<x><K><y>, <z>",
                "if <w>:\n    def <f>(<x><K><y>, <z>",
                "class <g>:\n    def <f>(self, <x><K><y>, <z>",
            ),
            "discover": (
                "def <f>(<v>, <w>, <x><K><y>, <z>",
                "<g>(<w>)\ndef <f>(<x><K><y>, <z>",
                "with <w>:\n    def <f>(<x><K><y>, <z>",
                "class <g>(<w>):\n    def <f>(self, <x><K><y>, <z>",
                "def <f>(self, <x><K><y>, <z>",
            ),
            "verify": (
                "<v> += <i>\ndef <f>(<x><K><y>, <z>",
                "for <v> in <w>:\n    def <f>(<x><K><y>, <z>",
                "class <g>:\n    def <f>(self, <v>, <x><K><y>, <z>",
                "@<g>\ndef <f>(<x><K><y>, <z>",
            ),
            "ood": (
                "def <g>(<v>=<w>):\n    pass\n\ndef <f>(<x><K><y>, <z>",
                "<v> = <g>(<w>=<i>)\ndef <f>(<x><K><y>, <z>",
                "def <g>(<v>):\n    def <f>(<x><K><y>, <z>",
                "class <g>:\n    def <w>(self, <v>):\n        return <v>\n\n    def <f>(self, <x><K><y>, <z>",
            ),
            "explain": (
                "import <g>\ndef <f>(<x><K><y>, <z>",
                "while <v>:\n    def <f>(<x><K><y>, <z>",
                "def <f>(<g>, <v>, <w>, <x><K><y>, <z>",
            ),
        },
    ),
    "with_as": TaskSpec(
        about="after a file was opened: as in a with statement, the end of the line in an assignment",
        answers=(" as", "\n"),
        switches={"H": swap("with <x>.", "<x> = ")},
        rest=(" <v>:\n    pass", "<v>()"),
        templates={
            "train": (
                "<H>open('<a>')",
                "<H>open('<a>', 'r')",
                "<y> = <i>\n<H>open('<a>')",
                "if <y>:\n    <H>open('<a>')",
                "<H>open(<y>)",
                "<f>(<y>)\n<H>open('<a>', '<b>')",
            ),
            "discover": (
                "<H>open('<a>.txt')",
                "while <y>:\n    <H>open('<a>')",
                "<y> += <i>\n<H>open(<z>)",
                "<H>open('<a>/<b>')",
                "<H>open(<y>, <z>)",
                "<y>.<z> = <i>\n<H>open('<a>')",
            ),
            "verify": (
                "<y> = not <z>\n<H>open('<a>')",
                "for <y> in <z>:\n    <H>open(<y>)",
                "<H>open('<a>-<b>.csv')",
                "<H>open(<y> + '<a>')",
            ),
            "ood": (
                "with <y>:\n    <z> = open('<a>')\n<H>open('<b>')",
                "def <f>(<y>):\n    if <y>:\n        <H>open('<a>')",
                "<y> = open('<a>')\n<z> = <f>(<y>)\n<H>open('<b>')",
                "class <f>:\n    def <g>(self, <y>):\n        <H>open(<y>, '<a>')",
            ),
            "explain": (
                "<f>(<y>, <z>)\n<H>open('<a>.dat')",
                "if <y> > <i>:\n    <H>open(<z>)",
                "<y> -= <i>\n<H>open('<a>', <z>)",
            ),
        },
    ),
    "fstring_brace": TaskSpec(
        # A plain string has a letter before it too (b or r): both members then have the same number of tokens.
        about="go on after a word in an f-string (a brace opens) or in a plain string (it closes)",
        answers=(" {", "'"),
        switches={"K": (("f",), ("b", "r")), "L": (("b", "r"), ("f",))},
        rest=("<v>}'", ""),
        templates={
            "train": (
                "<x> = <K>'<a>",
                "<x> = <K>'<a> <b>",
                "return <K>'<a>",
                "<x> = <y>\n<z> = <K>'<a>",
                "if <x>:\n    <y> = <K>'<a> <b>",
                "<x>.<y> = <K>'<a>",
                "<x> += <K>'<a> <b>",
            ),
            "discover": (
                "<x>[<i>] = <K>'<a>",
                "assert <x> == <K>'<a>",
                "while <x>:\n    <y> = <K>'<a>",
                "<x> = <y> + <K>'<a> <b>",
                "<x> = <K>'<a> <b> <c>",
                "<f>(<x>)\n<y> = <K>'<a>",
            ),
            "verify": (
                "<x> = <y> = <K>'<a> <b>",
                "with <x>:\n    <y> = <K>'<a>",
                "<x>[<y>] = <K>'<a> <b>",
                "<x>.<y> += <K>'<a>",
            ),
            "ood": (
                "<x> = <L>'<a>'\n<y> = <K>'<b> <c>",
                "def <f>(<x>):\n    <y> = <L>'<a>'\n    return <K>'<b>",
                "<x> = <L>'<a> <b>'\nwhile <y>:\n    if <x>:\n        <z> = <K>'<c>",
                "<x> = <y>[<L>'<a>'] + <K>'<b> <c>",
            ),
            "explain": (
                "<x> -= <i>\n<y> = <K>'<a>",
                "if <x> > <i>:\n    <y> = <K>'<a> <b>",
                "<x>, <y> = <z>, <K>'<a>",
            ),
        },
    ),
    "var_swap": TaskSpec(
        about="finish the exchange of two variables, x, y = y, and the one that is left",
        answers=(" x", " y"),
        switches={"A": swap("x", "y"), "B": swap("y", "x")},
        rest=("", ""),
        templates={
            "train": (
                "<A>, <B> = <B>,",
                "if <v>:\n    <A>, <B> = <B>,",
                "<f>(<v>)\n<A>, <B> = <B>,",
                "<v> = <i>\n<A>, <B> = <B>,",
                "while <v>:\n    <A>, <B> = <B>,",
                "<v>, <A>, <B> = <v>, <B>,",
            ),
            "discover": (
                "<v> += <i>\n<A>, <B> = <B>,",
                "with <v>:\n    <A>, <B> = <B>,",
                "<v> = <f>(<w>)\n<A>, <B> = <B>,",
                "def <f>(<v>):\n    <A>, <B> = <B>,",
                "<v>.<w>()\n<A>, <B> = <B>,",
                "<A>, <v>, <B> = <B>, <v>,",
            ),
            "verify": (
                "<v> = <w> + <i>\n<A>, <B> = <B>,",
                "for <v> in <w>:\n    <A>, <B> = <B>,",
                "<f>(<v>, <w>)\n<A>, <B> = <B>,",
                "<v>, <w>, <A>, <B> = <v>, <w>, <B>,",
            ),
            "ood": (
                "<B>, <A> = <v>, <w>\n<A>, <B> = <B>,",
                "<A> = <i>\n<B> = <j>\n<f>(<B>, <A>)\n<A>, <B> = <B>,",
                "class <f>:\n    def <g>(self, <v>):\n        for <w> in <v>:\n            <A>, <B> = <B>,",
                "def <f>(<B>, <A>):\n    <v> = <B>\n    if <A> > <B>:\n        <A>, <B> = <B>,",
            ),
            "explain": (
                "<v> -= <i>\n<A>, <B> = <B>,",
                "if <v> > <i>:\n    <A>, <B> = <B>,",
                "<v>[<i>] = <w>\n<A>, <B> = <B>,",
            ),
        },
    ),
    "lambda_func": TaskSpec(
        about="go on after the argument of a lambda (a colon) or the name of a function (a bracket)",
        answers=(":", "("),
        switches={"K": swap("lambda", "def"), "L": swap("return lambda", "async def")},
        rest=(" <v>", "<v>):\n    pass"),
        templates={
            "train": (
                "<K> <x>",
                "<L> <x>",
                "<y> = <i>\n<K> <x>",
                "<f>(<y>)\n<L> <x>",
                "if <y>:\n    <K> <x>",
                "while <y>:\n    <L> <x>",
            ),
            "discover": (
                "<y> += <i>\n<K> <x>",
                "with <y>:\n    <L> <x>",
                "<y> = <f>(<z>)\n<K> <x>",
                "<y>.<z>()\n<L> <x>",
                "if <y> == <i>:\n    <K> <x>",
                "<y> = [<i>, <z>]\n<L> <x>",
            ),
            "verify": (
                "<y> = <z> + <i>\n<L> <x>",
                "for <y> in <z>:\n    <K> <x>",
                "import <y>\n<L> <x>",
                "<f>(<y>, <z>)\n<K> <x>",
            ),
            "ood": (
                "<y> = lambda <z>: <i>\n<f>(<y>)\n<K> <x>",
                "def <f>(<y>):\n    return <y>\n\n<L> <x>",
                "class <f>:\n    def <g>(self, <y>):\n        <z> = lambda <w>: <w>\n        <K> <x>",
                "def <f>(<y>):\n    while <y>:\n        if <z>:\n            <L> <x>",
            ),
            "explain": (
                "<y> -= <i>\n<K> <x>",
                "if <y> > <i>:\n    <L> <x>",
                "<y>, <z> = <f>()\n<K> <x>",
            ),
        },
    ),
}
