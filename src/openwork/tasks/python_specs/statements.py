"""Seven questions about conditions, loops and where they end.

A line break and the indentation after it are one token, so a line that ends is answered by one that does not go on
indented. `self.` before a name keeps an assignment as long as a condition. Knows templates only.
"""

from __future__ import annotations

from openwork.tasks.python_specs.spec import TaskSpec, swap

STATEMENTS: dict[str, TaskSpec] = {
    "else_elif": TaskSpec(
        about="go on after else (a colon) or elif (a condition, which begins with not)",
        answers=(":", " not"),
        switches={"K": swap("else", "elif")},
        rest=("\n    pass", " <v>:\n    pass"),
        templates={
            "train": (
                "if <x>:\n    pass\n<K>",
                "if <x>:\n    <f>(<y>)\n<K>",
                "if <x>:\n    <y> = <i>\n<K>",
                "if <x> == <i>:\n    <f>()\n<K>",
                "if not <x>:\n    <y>()\n<K>",
                "if <y>:\n    if <x>:\n        <f>(<z>)\n    <K>",
            ),
            "discover": (
                "if <x>:\n    <y> += <i>\n<K>",
                "if <x>:\n    <y>.<f>()\n<K>",
                "if <x> > <i>:\n    <y> = <z>\n<K>",
                "while <x>:\n    if <y>:\n        <f>(<z>)\n    <K>",
                "if <x>.<y>:\n    <f>(<z>)\n<K>",
            ),
            "verify": (
                "if <x>[<i>]:\n    <f>(<y>)\n<K>",
                "if <x>:\n    <y> = <f>(<z>)\n<K>",
                "if <x> and <y>:\n    <f>()\n<K>",
                "with <x>:\n    if <y>:\n        <z> = <i>\n    <K>",
            ),
            "ood": (
                "if <x>:\n    <f>()\nelif not <y>:\n    <g>()\n<K>",
                "if <x>:\n    <f>()\nelse:\n    if <y>:\n        <g>()\n    <K>",
                "def <f>(<x>, <y>):\n    for <z> in <x>:\n        if <z>:\n            <y> += <i>\n        <K>",
                "if <x>:\n    <y> = [<i>, <j>]\n    <f>(<y>)\n    <z> = <y>\n<K>",
            ),
            "explain": (
                "if <x>:\n    <y> -= <i>\n<K>",
                "for <x> in <y>:\n    if <x>:\n        <f>()\n    <K>",
                "if <x> is <y>:\n    <z> = <i>\n<K>",
            ),
        },
    ),
    "if_ternary": TaskSpec(
        # A ternary needs one token more in place of the line break: "not" after its if, or a call before it.
        about="go on after the condition of an if statement (a colon) or of an if within a line (else)",
        answers=(":", " else"),
        switches={
            "K": swap("\nif", " if not"),
            "M": swap("\nif", "() if"),
            "N": swap("\n    if", "() if"),
        },
        rest=("\n    pass", " <v>"),
        templates={
            "train": (
                "<x> = <y><K> <z>",
                "<x> = <y><M> <z>",
                "<x> = <i><K> <z>",
                "<x>.<w> = <y><M> <z>",
                "<f>(<w>)\n<x> = <y><K> <z>",
                "<x> = <y><M> not <z>",
                "if <w>:\n    <x> = <y><N> <z>",
            ),
            "discover": (
                "<x> += <y><K> <z>",
                "<x> = <f>(<y>)<K> <z>",
                "<x> = <y>.<w><M> <z>",
                "while <w>:\n    <x> = <y><N> <z>",
                "<x>[<i>] = <y><M> <z>",
                "<w> = <j>\n<x> = <y><M> <z>",
            ),
            "verify": (
                "<x> -= <y><M> <z>",
                "<x> = <y> + <w><K> <z>",
                "with <w>:\n    <x> = <y><N> not <z>",
                "<x>, <w> = <y><M> <z>",
            ),
            "ood": (
                "<x> = <y> if <w> else <i>\n<v> = <y><M> <z>",
                "if <w>:\n    <v>()\n<x> = <y><K> <z>",
                "def <f>(<w>):\n    <x> = <w>.<y><N> not <z>",
                "<x> = [<y>, <w>]\n<v> = <f>(<x>)<K> <z>",
            ),
            "explain": (
                "<x> *= <y><M> <z>",
                "import <w>\n<x> = <y><K> <z>",
                "for <w> in <v>:\n    <x> = <y><N> <z>",
            ),
        },
    ),
    "if_equals": TaskSpec(
        about="go on after a name in a condition (==) or in a declaration (=)",
        answers=(" ==", " ="),
        switches={"K": swap("if ", "self.")},
        rest=(" <i>:\n    pass", " <v>"),
        templates={
            "train": (
                "<K><x>",
                "<y> = <i>\n<K><x>",
                "<f>(<y>)\n<K><x>",
                "if <y>:\n    <K><x>",
                "while <y>:\n    <K><x>",
                "<K><x>.<y>",
                "def <f>(self):\n    <K><x>",
            ),
            "discover": (
                "<y> += <i>\n<K><x>",
                "with <y>:\n    <K><x>",
                "<y> = <f>(<z>)\n<K><x>.<w>",
                "def <f>(self, <y>):\n    <K><x>",
                "<y>.<z>()\n<K><x>",
                "<K><x>[<y>]",
            ),
            "verify": (
                "<y> = <z> + <i>\n<K><x>",
                "for <y> in <z>:\n    <K><x>",
                "<f>(<y>, <z>)\n<K><x>[<i>]",
                "<K><x>.<y>.<z>",
            ),
            "ood": (
                "self.<y> = <i>\nif <z> == <j>:\n    <w> = <z>\n<K><x>",
                "class <f>:\n    def <g>(self, <y>):\n        for <z> in <y>:\n            <K><x>",
                "if <y> == <i>:\n    self.<z> = <y>\n    <K><x>",
                "<y> = <z>\nself.<w> = <y>\nwhile <y>:\n    <K><x>.<v>",
            ),
            "explain": (
                "<y> -= <i>\n<K><x>",
                "if <y> > <i>:\n    <K><x>.<z>",
                "<y>, <z> = <f>()\n<K><x>",
            ),
        },
    ),
    "var_if": TaskSpec(
        about="end a condition such as if x == True (a colon) or an assignment such as x = True (a new line)",
        answers=(":", "\n"),
        switches={"K": swap("if ", "self."), "E": swap("==", "=")},
        rest=("\n    pass", "<v>()"),
        templates={
            "train": (
                "<K><x> <E> True",
                "<K><x> <E> <i>",
                "<K><x> <E> False",
                "<y> = <i>\n<K><x> <E> True",
                "<f>(<y>)\n<K><x> <E> <z>",
                "if <y>:\n    <K><x> <E> True",
                "<K><x>.<y> <E> None",
            ),
            "discover": (
                "<y> += <i>\n<K><x> <E> True",
                "<K><x>.<y> <E> False",
                "with <y>:\n    <K><x> <E> <i>",
                "<y> = <f>(<z>)\n<K><x> <E> <y>",
                "<K><x> <E> <y>.<z>",
                "<y>.<z>()\n<K><x> <E> None",
            ),
            "verify": (
                "<K><x>[<y>] <E> True",
                "for <y> in <z>:\n    <K><x> <E> <y>",
                "<K><x>.<y>.<z> <E> False",
                "<y> = <z> + <i>\n<K><x> <E> <j>",
            ),
            "ood": (
                "self.<y> = True\nif <z> == False:\n    <w> = <z>\n<K><x> <E> True",
                "class <f>:\n    def <g>(self, <y>):\n        while <y>:\n            <K><x> <E> None",
                "if <y> == <i>:\n    self.<z> = <y>\n    <K><x> <E> <y>",
                "<y> = <z> == <w>\n<K><x>.<v> <E> True",
            ),
            "explain": (
                "<y> -= <i>\n<K><x> <E> True",
                "if <y> > <i>:\n    <K><x> <E> <z>",
                "<y>, <z> = <f>()\n<K><x> <E> False",
            ),
        },
    ),
    "indent_for": TaskSpec(
        about="the indentation after a for line: eight spaces where it stands in a block, four where it does not",
        answers=("\n        ", "\n    "),
        switches={"N": swap("\n    ", "\n")},
        rest=("<v>()", "<v>()"),
        templates={
            "train": (
                "if <z>:\n    <f>()<N>for <x> in <y>:",
                "with <z>:\n    <f>()<N>for <x> in <y>:",
                "if <z>:\n    <w> = <i><N>for <x> in <y>:",
                "while <z>:\n    <f>(<w>)<N>for <x> in <y>:",
                "def <f>(<z>):\n    <w> = <z><N>for <x> in <y>:",
                "if <z>:\n    pass<N>for <x> in <y>:",
            ),
            "discover": (
                "if <z>:\n    <w> += <i><N>for <x> in <y>:",
                "while <z>:\n    <w> = <f>(<z>)<N>for <x> in <y>:",
                "def <f>(<z>):\n    <w>(<z>)<N>for <x> in <y>:",
                "if <z> == <i>:\n    <f>(<w>)<N>for <x> in <y>:",
                "with <z>:\n    <w> = <i><N>for <x> in <y>.<f>():",
                "if <z>:\n    <f>()<N>for <x> in <g>(<y>):",
            ),
            "verify": (
                "if not <z>:\n    <f>()<N>for <x> in <y>:",
                "for <z> in <w>:\n    <f>(<z>)<N>for <x> in <y>:",
                "def <f>(<z>, <w>):\n    <z> = <w><N>for <x> in <y>:",
                "with <z>:\n    <w>.<f>()<N>for <x> in <y>:",
            ),
            "ood": (
                "if <z>:\n    while <w>:\n        <f>()<N>for <x> in <y>:",
                "def <f>(<z>):\n    if <z>:\n        <w> = <i>\n    <g>(<z>)<N>for <x> in <y>:",
                "if <z>:\n    <f>()\nelse:\n    <w> = [<i>, <j>]<N>for <x> in <y>:",
                "class <f>:\n    <z> = <i>\n    <w> = <z><N>for <x> in <y>:",
            ),
            "explain": (
                "if <z> > <i>:\n    <f>()<N>for <x> in <y>:",
                "with <z>:\n    <w> -= <i><N>for <x> in <y>:",
                "while not <z>:\n    <f>(<w>)<N>for <x> in <y>:",
            ),
        },
    ),
    "while_return_true": TaskSpec(
        about="end while True (a colon) or return True (a new line)",
        answers=(":", "\n"),
        switches={"K": swap("while", "return")},
        rest=("\n    pass", "<v>()"),
        templates={
            "train": (
                "<K> True",
                "<K> <x>",
                "<y> = <i>\n<K> True",
                "<f>(<y>)\n<K> <x>",
                "if <y>:\n    <K> True",
                "<K> <x>.<y>",
                "def <f>(<y>):\n    <K> True",
            ),
            "discover": (
                "<y> += <i>\n<K> True",
                "with <y>:\n    <K> <x>.<z>",
                "<y> = <f>(<z>)\n<K> <y>",
                "<y> = [<i>, <z>]\n<K> not <x>",
                "def <f>():\n    <y> = <i>\n    <K> True",
                "<y>.<z>()\n<K> <x>",
            ),
            "verify": (
                "<y> = <z> + <i>\n<K> True",
                "for <y> in <z>:\n    <K> <y>",
                "<K> <x>[<y>]",
                "<f>(<y>, <z>)\n<K> True",
            ),
            "ood": (
                "while True:\n    <y> = <f>(<z>)\n    <K> <y>",
                "def <f>(<y>):\n    while <y>:\n        <z> = <i>\n    <K> True",
                "class <f>:\n    def <g>(self):\n        if <y>:\n            return <z>\n        <K> True",
                "while <y>:\n    <f>()\nif <z>:\n    <K> <x>.<w>",
            ),
            "explain": (
                "<y> -= <i>\n<K> True",
                "if <y> > <i>:\n    <K> <x>",
                "<y>, <z> = <f>()\n<K> <y>",
            ),
        },
    ),
    "enumerate_range": TaskSpec(
        # The second variable of the loop stands in the line before where there is only one.
        about="loop over two variables (enumerate) or over one (range)",
        answers=(" enumerate", " range"),
        switches={
            "K": swap("\nfor <x>, ", " + <x>\nfor "),
            "P": swap(")\nfor <x>, ", ", <x>)\nfor "),
            "R": swap("]\nfor <x>, ", ", <x>]\nfor "),
            "J": swap("\n    for <x>, ", " + <x>\n    for "),
            "S": swap(")\n    for <x>, ", ", <x>)\n    for "),
        },
        rest=("(<v>):\n    pass", "(<v>):\n    pass"),
        templates={
            "train": (
                "<w> = <z><K><y> in",
                "<f>(<z><P><y> in",
                "<w> = [<z><R><y> in",
                "if <v>:\n    <w> = <z><J><y> in",
                "<w> += <z><K><y> in",
                "while <v>:\n    <f>(<z><S><y> in",
            ),
            "discover": (
                "<w>.<f> = <z><K><y> in",
                "<w>.<f>(<z><P><y> in",
                "with <v>:\n    <w> = <z><J><y> in",
                "<v> = <i>\n<f>(<z><P><y> in",
                "<w> = <f>(<z><P><y> in",
                "<w> -= <z><K><y> in",
            ),
            "verify": (
                "<w>[<i>] = <z><K><y> in",
                "for <v> in <w>:\n    <f>(<z><S><y> in",
                "<v> = <w> = [<z><R><y> in",
                "<w> = not <z><K><y> in",
            ),
            "ood": (
                "for <v> in range(<i>):\n    <w> = <v>\n<f>(<z><P><y> in",
                "for <v>, <w> in enumerate(<g>):\n    <f>(<z><S><y> in",
                "def <f>(<v>):\n    if <v>:\n        <g>(<v>)\n    <w> = <z><J><y> in",
                "class <f>:\n    <v> = <i>\n    <w> = <z><J><y> in",
            ),
            "explain": (
                "<w> *= <z><K><y> in",
                "<v> -= <i>\n<w> = [<z><R><y> in",
                "if <v> > <i>:\n    <w>(<z><S><y> in",
            ),
        },
    ),
}
