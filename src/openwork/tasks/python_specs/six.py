"""The six questions that the training mix exercises unless it is told otherwise.

Texts, their order and that of the questions decide the training mix, and with it every published figure: a change here
changes those. Knows templates only.
"""

from __future__ import annotations

from openwork.tasks.python_specs.spec import TaskSpec, swap

READING = ("input", "source", "read", "load")
WRITING = ("output", "result", "write", "save")

SIX: dict[str, TaskSpec] = {
    "single_double_quote": TaskSpec(
        about="close a string and a call with the quote that opened the string",
        answers=("')", '")'),
        switches={"Q": swap("'", '"'), "P": swap('"', "'")},
        rest=("", ""),
        templates={
            "train": (
                "<f>(<Q><a>",
                "<f>(<Q><a> <b>",
                "<x> = <f>(<Q><a>",
                "return <f>(<Q><a>",
                "print(<Q><a> <b>",
                "<f>(<x>, <Q><a>",
                "<f>.<x>(<Q><a>",
                "<x> = <P><a><P>\n<f>(<Q><b>",
            ),
            "discover": (
                "<x> = <y>.<f>(<Q><a> <b>",
                "<f>(<Q><a> <b> <c>",
                "for <x> in <y>:\n    <f>(<Q><a>",
                "<x>.<f>(<y>, <Q><a>",
                "assert <f>(<Q><a> <b>",
                "while <x>:\n    <y>.<f>(<Q><a>",
                "<x>[<n>] = <f>(<Q><a> <b>",
                "<x>.<y> = <f>(<Q><a> <b> <c>",
            ),
            "verify": (
                "<x> += <f>(<Q><a>",
                "<x> = not <f>(<Q><a> <b>",
                "if <x>:\n    <f>.<y>(<Q><a> <b>",
                "del <x>\n<f>(<Q><a> <b> <c>",
            ),
            "ood": (
                "<f>(<P><a><P>)\n<g>(<x>, <P><b> <c><P>)\n<y> = <f>(<Q><d>",
                "def <f>(<x>, <y>):\n    <z> = <P><a> <b><P>\n    return <g>(<z>, <Q><c>",
                "<x> = <f>(<P><a> <b> <c><P>)\nwhile <y>:\n    if <x>:\n        <g>(<Q><d>",
                "<x>[<P><a><P>] = <f>(<i>, <j>, <Q><b> <c>",
            ),
            "explain": (
                "<x> -= <f>(<Q><a> <b>",
                "<x>, <y> = <f>(<Q><a>",
                "if <x> > <i>:\n    <f>(<x>, <Q><a> <b>",
            ),
        },
    ),
    "bracket_counting": TaskSpec(
        about="close as many brackets as the list opened",
        answers=("]]", "]"),
        switches={"O": swap("[[", "["), "P": swap("[", "[["), "C": swap("]", "]]")},
        rest=("", ""),
        templates={
            "train": (
                "<x> = <O><i>, <j>",
                "<x> = <O><y>, <i>",
                "<x> = <O><i>, <j>, <k>",
                "<x> = <O><i>, <j>], [<k>, <n>",
                "<x> = <O><y>, <z>",
                "return <O><y>, <i>",
                "if <x>:\n    <y> = <O><i>, <j>",
                "<x> = <O><y>, <i>], [<z>, <j>",
            ),
            "discover": (
                "<x> = <O><y>, <z>, <i>",
                "<x>.<f> = <O><y>, <i>], [<w>, <j>",
                "<x>[<i>] = <O><j>, <k>",
                "while <x>:\n    <y> = <O><z>, <i>",
                "<x> -= <O><y>, <i>",
                "<x> = <y> + <O><z>, <i>",
                "with <x>:\n    <y> = <O><i>, <j>, <k>",
                "<x>, <y> = <O><z>, <i>], [<w>, <j>",
            ),
            "verify": (
                "<f>.<x> = <O><y>, <i>, <j>",
                "<x> = <y> = <O><i>, <j>",
                "<x> = <i> + <O><y>, <j>",
                "if <x>:\n    <y>.<z> = <O><i>, <j>], [<w>, <k>",
            ),
            "ood": (
                "<x> = <P><y>, <i><C>\n<f>(<x>)\n<z> = <O><j>, <w>, <k>",
                "def <f>(<x>):\n    <y> = <P><i>, <j><C>\n    return <O><x>, <y>, <k>",
                "<x>.<y> = <O><i>, <z>, <j>], [<w>, <k>, <n>",
                "while <x>:\n    <y> = <P><z>, <i><C>\n    if <y>:\n        <w> = <O><j>, <k>",
            ),
            "explain": (
                "assert <x> == <O><y>, <i>",
                "<x> *= <O><i>, <y>, <j>",
                "if <x> > <k>:\n    <x> = <O><y>, <z>], [<i>, <j>",
            ),
        },
    ),
    "set_or_string": TaskSpec(
        # str() and not "": both members of a pair then have the same number of tokens.
        about="add to a variable as its type allows: a set by a method, a string by +=",
        answers=(".add", " +="),
        switches={"K": swap("set", "str"), "L": swap("str", "set")},
        rest=("(<i>)", " <v>"),
        templates={
            "train": (
                "<x> = <K>()\n<x>",
                "<x> = <K>()\n<y> = <i>\n<x>",
                "<x> = <K>()\nif <y>:\n    <x>",
                "<x> = <K>()\nfor <y> in <z>:\n    <x>",
                "<x> = <K>()\n<f>(<y>)\n<x>",
                "<x> = <K>()\nwhile <y>:\n    <x>",
            ),
            "discover": (
                "<x> = <K>()\n<y> = <f>(<z>)\n<x>",
                "<x> = <K>()\nfor <y> in <f>(<z>):\n    <x>",
                "<y> = <i>\n<x> = <K>()\n<x>",
                "<x> = <K>()\nif <y> == <i>:\n    <x>",
                "<x> = <K>()\nif not <y>:\n    <x>",
                "<x> = <K>()\n<y> += <i>\n<x>",
                "<f>(<y>)\n<x> = <K>()\nif <z>:\n    <x>",
                "<x> = <K>()\nwhile <y> < <i>:\n    <x>",
            ),
            "verify": (
                "<x> = <K>()\n<y> = <z> + <i>\n<x>",
                "<x> = <K>()\nwith <y>:\n    <x>",
                "import <y>\n<x> = <K>()\n<x>",
                "<x> = <K>()\nfor <y> in <z>.<f>():\n    <x>",
            ),
            "ood": (
                "<y> = <L>()\n<x> = <K>()\n<f>(<z>)\n<x>",
                "def <f>(<y>, <z>):\n    <x> = <K>()\n    for <w> in <z>:\n        if <w>:\n            <x>",
                "<x> = <K>()\n<y> = [<i>, <j>]\n<z> = <f>(<y>)\n<x>",
                "class <f>:\n    def <g>(self):\n        <y> = <L>()\n        <x> = <K>()\n        <x>",
            ),
            "explain": (
                "<x> = <K>()\n<y>.<f>()\n<x>",
                "def <f>():\n    <x> = <K>()\n    <x>",
                "<x> = <K>()\n<y>[<i>] = <z>\n<x>",
            ),
        },
    ),
    "for_while": TaskSpec(
        about="go on after a variable as the loop's keyword demands",
        answers=(" in", ":"),
        switches={"K": swap("for", "while"), "L": swap("while", "for")},
        rest=(" <v>:\n    pass", "\n    pass"),
        templates={
            "train": (
                "<K> <x>",
                "if <y>:\n    <K> <x>",
                "<y> = <i>\n<K> <x>",
                "<f>(<y>)\n<K> <x>",
                "def <f>(<y>):\n    <K> <x>",
                "with <f>():\n    <K> <x>",
            ),
            "discover": (
                "<y> += <i>\n<K> <x>",
                "with <y>:\n    <K> <x>",
                "<y> = [<i>, <z>]\n<K> <x>",
                "def <f>():\n    <K> <x>",
                "<y>.<z> = <i>\n<K> <x>",
                "if not <y>:\n    <K> <x>",
                "<y> = <z> + <i>\n<K> <x>",
                "<y> = <z>.<f>()\n<K> <x>",
            ),
            "verify": (
                "<y> = <f>(<z>, <i>)\n<K> <x>",
                "if <y> == <z>:\n    <K> <x>",
                "import <y>\n<K> <x>",
                "<y>.<f>(<z>)\n<K> <x>",
            ),
            "ood": (
                "while <y>:\n    for <z> in <w>:\n        <f>(<z>)\n<K> <x>",
                "def <f>(<y>, <z>):\n    if <y>:\n        <w> = <z>\n    <K> <x>",
                "for <y> in <z>:\n    <w> = <y>\nwhile <w>:\n    <K> <x>",
                "class <g>:\n    def <f>(self):\n        while <y>:\n            <z> = <i>\n        <K> <x>",
            ),
            "explain": (
                "<y> -= <i>\n<K> <x>",
                "assert <y>\n<K> <x>",
                "if <y> > <i>:\n    <K> <x>",
            ),
        },
    ),
    "with_open": TaskSpec(
        about="open a file for reading or for writing, as its name sounds",
        answers=("r", "w"),
        switches={"K": (READING, WRITING)},
        rest=("') as <v>:\n    pass", "') as <v>:\n    pass"),
        templates={
            "train": (
                "with open('<K>.txt', '",
                "with open('<a>/<K>', '",
                "with open('<K>/<a>.txt', '",
                "with open('<a>/<K>.txt', '",
                "with open('<a>-<K>.csv', '",
                "with open('<K>-<a>.dat', '",
                "with open('<K>-<a>', '",
                "with open('/<a>/<K>', '",
            ),
            "discover": (
                "with open('<a>/<K>-<b>.txt', '",
                "<x> = <i>\nwith open('<K>/<a>.json', '",
                "with open('<a>-<K>', '",
                "while <x>:\n    with open('<a>-<K>.txt', '",
                "with open('<a>/<b>/<K>.dat', '",
                "<x>.<f>()\nwith open('<a>/<K>.csv', '",
                "with open('<K>/<a>-<b>.txt', '",
                "if not <x>:\n    with open('<K>-<a>.csv', '",
            ),
            "verify": (
                "with open('<K>.<a>', '",
                "<f>(<x>)\nwith open('<a>-<b>/<K>.txt', '",
                "for <x> in <y>:\n    with open('<a>/<K>.json', '",
                "with open('/<a>/<K>-<b>.csv', '",
            ),
            "ood": (
                "<x> = <f>('<a>')\nif <x>:\n    with open('<b>/<c>-<K>.txt', '",
                "def <f>(<x>, <y>):\n    <x> = <y> + <i>\n    with open('/<K>/<a>.dat', '",
                "<x> = ['<a>', '<b>']\nwith open('<c>.<K>.txt', '",
                "class <f>:\n    def <g>(self, <x>):\n        while <x>:\n            with open('<K>/<a>/<b>.json', '",
            ),
            "explain": (
                "with open('<a>-<b>-<K>.txt', '",
                "<x> += <i>\nwith open('<K>/<a>.csv', '",
                "if <x> > <i>:\n    with open('<a>/<K>.dat', '",
            ),
        },
    ),
    "bracket_brace": TaskSpec(
        about="go on after a string in a dict (a colon) or in a list (a comma)",
        answers=("':", "',"),
        switches={
            "O": swap("{", "["),
            "S": swap(":", ","),
            "P": swap("[", "{"),
            "T": swap(",", ":"),
            "C": swap("]", "}"),
        },
        rest=(" <n>}", " <n>]"),
        templates={
            "train": (
                "<x> = <O>'<a>",
                "<x> = <O>'<a> <b>",
                "<x> = <O>'<a>'<S> <i>, '<b>",
                "return <O>'<a>",
                "<x> = <O>'<a>'<S> <y>, '<b>",
                "<x>[<i>] = <O>'<a>",
            ),
            "discover": (
                "<x> += <O>'<a>",
                "while <x>:\n    <y> = <O>'<a>",
                "<x>.<y> = <O>'<a>'<S> <i>, '<b>",
                "<x> = <y>\n<z> = <O>'<a> <b>",
                "<x>[<y>] = <O>'<a>",
                "with <x>:\n    <y> = <O>'<a>",
                "<x> = <i>\n<y> = <O>'<a>'<S> <x>, '<b>",
                "<x>.<y>.<z> = <O>'<a> <b>",
            ),
            "verify": (
                "<x> = <y> = <O>'<a> <b>",
                "if <x>:\n    <y>.<z> = <O>'<a>",
                "assert <x> == <O>'<a>",
                "<x>.<f> = <y> = <O>'<a>'<S> <i>, '<b>",
            ),
            "ood": (
                "<x> = <P>'<a>'<T> <i><C>\n<y> = <P>'<b>'<T> <j><C>\n<z> = <O>'<c> <d>",
                "def <f>(<x>):\n    <y> = <P>'<a>'<T> <x><C>\n    return <O>'<b>",
                "<x>.<y> = <O>'<a>'<S> <i>, '<b>'<S> <z>, '<c>",
                "<x> = <P>'<a>'<T> <i><C>\nwhile <x>:\n    <z> = <O>'<b>'<S> <j>, '<c>",
            ),
            "explain": (
                "<x> -= <i>\n<y> = <O>'<a>",
                "if <x> > <i>:\n    <x> = <O>'<a>'<S> <y>, '<b>",
                "<x>, <y> = <z>, <O>'<a>",
            ),
        },
    ),
}
