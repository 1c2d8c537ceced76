"""Texts for the page's Markdown: those that attack it, those that overwork it, and plain ones."""

# each tries to run something, to load something, or to lead somewhere else than the web
ATTACKS = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=http://evil.example/x.js></SCRIPT>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<img src=x onerror=alert(1)>",
    '<img src="x" onerror="alert(1)"/>',
    "<img src='http://evil.example/pixel.png'>",
    '<img srcset="http://evil.example/a.png 2x">',
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    '<svg><a xlink:href="javascript:alert(1)"><text>x</text></a></svg>',
    '<iframe src="javascript:alert(1)"></iframe>',
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    '<object data="javascript:alert(1)"></object>',
    '<embed src="javascript:alert(1)">',
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<audio src=x onerror=alert(1)>",
    "<marquee onstart=alert(1)>",
    '<form action="javascript:alert(1)"><button>x</button></form>',
    '<math><mi//xlink:href="data:x,<script>alert(1)</script>">',
    '<meta http-equiv="refresh" content="0;url=http://evil.example/">',
    '<link rel="stylesheet" href="http://evil.example/x.css">',
    '<base href="http://evil.example/">',
    "<style>@import 'http://evil.example/x.css';</style>",
    '<div style="background:url(http://evil.example/x.png)">x</div>',
    '<a href="javascript:alert(1)">x</a>',
    "<template><script>alert(1)</script></template>",
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<img src=x onerror=alert(1)>]]>",
    "</p></div></main><script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "'-alert(1)-'",
    "${alert(1)} {{alert(1)}} <%= alert(1) %>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](<java\tscript:alert(1)>)",
    "[x](&#106;avascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](blob:http://evil.example/1)",
    "[x](file:///etc/passwd)",
    "[x](//evil.example/)",
    "[x](/v1/models)",
    '[x](https://e.example/"onmouseover="alert(1))',
    '[x](https://e.example/ "\\" onmouseover=alert(1) x=\\"")',
    "<javascript:alert(1)>",
    "[<img src=x onerror=alert(1)>](https://e.example/)",
    "![x](http://evil.example/pixel.png)",
    "![x](javascript:alert(1))",
    "![<script>alert(1)</script>](data:image/svg+xml,<svg onload=alert(1)>)",
    "[![x](http://evil.example/p.png)](javascript:alert(1))",
    "[x][1]\n\n[1]: javascript:alert(1)",
    "```<script>alert(1)</script>\n</code></pre><script>alert(1)</script>\n```",
    "``</code><script>alert(1)</script>``",
    "| <img src=x onerror=alert(1)> | b |\n| --- | --- |\n| <script>alert(1)</script> | c |",
    "# <img src=x onerror=alert(1)>\n\n> <script>alert(1)</script>\n\n- <svg onload=alert(1)>",
    "**<b onclick=alert(1)>x</b>** ~~<i onmouseover=alert(1)>y</i>~~",
]

# address -> where the link leads, None where there is none; the text is never lost
LINKS = {
    "https://a.example/b?c=d#e": "https://a.example/b?c=d#e",
    "http://a.example": "http://a.example/",
    "mailto:me@a.example": "mailto:me@a.example",
    "HTTPS://A.example/": "https://a.example/",
    "<https://a.example/b>": "https://a.example/b",
    "https://a.example/f(x)": "https://a.example/f(x)",
    "javascript:alert(1)": None,
    "data:text/html,x": None,
    "ftp://a.example/": None,
    "tel:123": None,
    "/v1/models": None,
    "//a.example/": None,
    "page.html": None,
    "#up": None,
}

# parts that, said over and over, make careless readers of Markdown go back and forth
CARELESS = [
    "[",
    "![",
    "](",
    "[]",
    "[a](",
    "[[a](b)",
    "*",
    "**a ",
    "_a_",
    "*a _b ",
    "~~a ",
    "`",
    "` `` ",
    "<",
    "<http",
    "<https://a",
    "https://a.example ",
    "h",
    "\\",
    "> ",
    ">",
    "- ",
    "1. a\n",
    "#",
    "# ",
    "|",
    "a|b\n-|-\n",
    "|-",
    "```\n",
    "~~~ a\n",
    "\n",
    " ",
    "(",
    "https://a(",
    "https://a).",
    "a*b[c`d",
    "- a\n  ",
    "[a](https://b 'c",
    "[a](<",
    "_*",
    "* * * ",
    "\t",
    "***a***",
]
LENGTH = 60_000
HEAVY = {text: (text * LENGTH)[:LENGTH] for text in CARELESS}

# what our reader and the reference must agree on: (differences of the page are taken out before)
ALIKE = [
    "one\n\ntwo\nlines",
    "# a\n## b\n### c ##\n###### d\n####### e\n#f",
    "*a* **b** ***c*** ~~d~~ `e`",
    "_a_ __b__ snake_case_name and 2*3*4",
    "**a*b*c** and *a**b**c*",
    "*a **b* c**",
    "** a ** and * b *",
    "a`b *c* `d`` e ` f ``g",
    "``a ` b`` and `` ` ``",
    "\\*a\\* \\`b\\` \\[c\\] \\d \\\\",
    "- a\n- b\n- c",
    "* a\n* b\n\ntext",
    "1. a\n2. b\n3. c",
    "3. a\n4. b",
    "- a\n  - b\n    - c\n- d",
    "1. a\n   - b\n   - c\n2. d",
    "- a\n\n  more of a\n- b",
    "- a\n\n- b\n\n- c\n\nend",
    "- a\n1. b",
    "- a\n+ b",
    "- `a`\n- **b**",
    "text\n- a\n- b",
    "text\n1. a",
    "in\n1984. a year",
    "> a\n> b\n>\n> c",
    "> a\n> > b\n\nc",
    "> - a\n> - b",
    "- > a\n- b",
    "---\n\n***\n\n___\n\n- - -",
    "a\n\n---\n\nb",
    "```python\nx = 1\n\n\ty = '<b>'\n```\nafter",
    "~~~\na ``` b\n~~~",
    "````\n```\na\n```\n````",
    "```\nnever closed\n\n- a",
    "- a\n  ```\n  code\n    more\n  ```\n- b",
    "text\n```\ncode\n```\ntext",
    "| a | b |\n| --- | :-: |\n| 1 | 2 |\n| 3 |",
    "a | b\n--- | ---:\n`c` | **d**\n\nend",
    "| a \\| b | c |\n|---|---|\n| d | e \\| f |",
    "| a | b |\n| --- |\nno table",
    "| a | b |\n| - | - |\n| x | y |\n| - | - |\n| p | q |",
    "| a | b |\n| - | - |\n| x | y |\n| - | -5 |\n| p | q |",
    "[a](https://b.example/) and [**c** `d`](https://e.example/f 'title')",
    "[a](https://b.example/(c)) [d](<https://e.example/f>)",
    "[a [b](https://c.example/) d](mailto:e@f.example)",
    "*a [b*](https://c.example/)",
    "[not a link] [nor this]( and (this)",
    "<https://a.example/b_c_d> <b>html</b> &amp",
    '**bold:** text, **bold**text, (*it*) "*it*"',
    "a *b\n\nc* d",
    "5 * 3 * 2, a_b, __init__, *args, **kwargs",
    "日本**語**です **「語」** です",
    "🎈**a**🎈 *é*",
]

# all kinds of blocks in one text, which is also read letter by letter
EVERYTHING = """\
# Title

Some *text* with `code`, a [link](https://a.example/) and **bold**
on two lines.

1. one
   - inner
   - inner

2. two

   more of two
10. ten

> quoted
> - list

| a | b |
| - | -: |
| 1 | `2` |

- [ ] open
- [x] done

  ```js
  let a = 1;
  ```

***

```python
def f(x):
    return x

- not a list
```
~~gone~~ ![words](https://a.example/p.png) <b>

- last
-

1. a

2. b
"""
