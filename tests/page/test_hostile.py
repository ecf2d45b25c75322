"""What a model says is nobody's page: nothing in it runs, loads or leads astray; nor in a name or an error."""

import json
from collections.abc import Iterator

import pytest
from daemons import Daemon, running
from playwright.sync_api import expect

from page.browser import Tab
from page.conftest import Visit

LOOPS = ("uvloop",)

pytestmark = pytest.mark.timeout(300)

ELSEWHERE = "http://198.51.100.7/x"

ATTACKS = [
    "<script>fetch('/broken')</script>",
    "<img src=x onerror=alert(1)>",
    f"<img src={ELSEWHERE}>",
    f"![a picture]({ELSEWHERE}.png)",
    f"![]({ELSEWHERE}.png)",
    f"![ref][pic]\n\n[pic]: {ELSEWHERE}.png",
    "[a link](javascript:alert(1))",
    "[a link](JaVaScRiPt&colon;alert(1))",
    "[a link](data:text/html,<script>alert(1)</script>)",
    "[a link](vbscript:x) [b](file:///etc/passwd) [c](//198.51.100.7/) [d](/api/status) [e](blob:x)",
    "<javascript:alert(1)>",
    f"<svg onload=alert(1)><image href='{ELSEWHERE}'/></svg>",
    f"<style>@import '{ELSEWHERE}'; body {{ display: none }}</style>",
    f"<iframe src='{ELSEWHERE}'></iframe><iframe srcdoc='<script>alert(1)</script>'></iframe>",
    f"<link rel=stylesheet href={ELSEWHERE}><base href={ELSEWHERE}><meta http-equiv=refresh content='0;{ELSEWHERE}'>",
    f"<form action={ELSEWHERE}><input name=x autofocus onfocus=alert(1)><button>ok</button></form>",
    f"<video src={ELSEWHERE} poster={ELSEWHERE}></video><object data={ELSEWHERE}></object><embed src={ELSEWHERE}>",
    "<a href='javascript:alert(1)' onclick=alert(1) target=_top>x</a>",
    "<div style='position:fixed;inset:0' id=chat class=shade>over all</div>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "```<img src=x onerror=alert(1)>\n<img src=x onerror=alert(1)>\n```",
    '```js"onmouseover="alert(1)\nx\n```',
    '[x](http://a.example/"onmouseover="alert(1) "title" )',
    "| <img src=x onerror=alert(1)> |\n|---|\n| <script>alert(1)</script> |",
    "- [x] <input type=image src=x onerror=alert(1)>",
    "a<br>b <br onclick=alert(1)> c",
]  # fmt: skip

STRANGERS = (
    "[...document.querySelectorAll('.turns *, #notice *, #conversations *')].flatMap(each => ["
    " ...(/^(script|img|image|svg|math|style|iframe|link|base|meta|form|video|object|embed|audio)$/i.test(each.tagName)"
    "   ? [each.outerHTML] : []),"
    " ...[...each.attributes].filter(a => /^on|^style$|^src|^id$|^name$/i.test(a.name)).map(a => each.outerHTML),"
    " ...(each.href && !/^(https?|mailto):/.test(each.href) ? [each.outerHTML] : []),"
    " ...(each.tagName === 'A' && !(each.target === '_blank' && each.rel.includes('noopener'))"
    "   ? [each.outerHTML] : []) ])"
)


@pytest.mark.parametrize("split", ["words", "chars"])
def test_nothing_in_an_answer_runs_loads_or_leads_astray(daemon: Daemon, tab: Tab, split: str) -> None:
    daemon.control(text="\n\n".join(ATTACKS), split=split)
    tab.without_limit().open_ready()
    answer = tab.ask("attack")
    assert tab.page.evaluate(STRANGERS) == []
    expect(answer).to_contain_text("<script>fetch('/broken')</script>")
    expect(answer).to_contain_text("over all")
    hrefs = answer.locator("a").evaluate_all("all => all.map(each => each.getAttribute('href'))")
    assert f"{ELSEWHERE}.png" in hrefs, "a picture is a link"
    tab.page.reload()
    expect(tab.answers).to_contain_text("over all")
    assert tab.page.evaluate(STRANGERS) == []


def test_each_attack_alone_and_cut_anywhere(daemon: Daemon, tab: Tab) -> None:
    tab.open_ready()
    strange = tab.page.evaluate(
        """async (attacks) => {
            const { Flow } = await import("/page/render/flow.js");
            const turns = document.getElementById("turns");
            turns.hidden = false;
            const found = [];
            for (const attack of attacks) for (let cut = 0; cut <= attack.length; cut++) {
                const words = turns.appendChild(document.createElement("div"));
                const flow = new Flow(words);
                flow.add(attack.slice(0, cut));
                flow.end();
                flow.add(attack.slice(cut));
                flow.end();
                found.push(...STRANGERS);
                words.remove();
            }
            return found;
        }""".replace("STRANGERS", STRANGERS),
        ATTACKS,
    )
    assert strange == []


EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def misnamed() -> Iterator[Daemon]:
    """A daemon with a model that has a name like an attack."""
    daemon = Daemon()
    daemon.configure({}, {"models": {"tiny": daemon.tiny() | {"default": True}, EVIL: daemon.tiny()}})
    with running(daemon):
        yield daemon


def test_nor_what_a_user_says_or_a_name_or_an_error(misnamed: Daemon, visit: Visit) -> None:
    tab = visit(misnamed)
    tab.forgive("Failed to load resource: .* (400|404)")
    tab.open_ready()
    tab.page.get_by_label("Model").select_option(EVIL)
    expect(tab.page.locator("#empty-model")).to_have_text(EVIL)
    expect(tab.page.locator("#empty-state")).to_have_text("Ready.")
    answer = tab.ask(f"{EVIL} <b>bold</b>")
    expect(tab.questions).to_have_text(f"{EVIL} <b>bold</b>")
    expect(answer.locator(".words")).to_contain_text("tok15")
    error = {"message": f"{EVIL} is wrong", "hint": f"<script>alert(1)</script>{EVIL}", "source": EVIL}
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, body=json.dumps({"error": error})))
    answer = tab.ask("fail")
    expect(answer.locator(".failure")).to_contain_text(f"{EVIL} is wrong")
    expect(answer.locator(".failure .hint")).to_have_text(f"<script>alert(1)</script>{EVIL}")
    assert tab.page.evaluate(STRANGERS) == []
    assert tab.page.locator("img").count() == 0


def test_what_was_kept_by_another_hand_does_no_harm(daemon: Daemon, tab: Tab) -> None:
    tab.open_ready()
    broken = [
        "{",
        "null",
        "[]",
        '{"id": 1}',
        '{"id": "x"}',
        json.dumps({"id": "y", "messages": [], "title": ATTACKS[1]}),
    ]
    tab.page.evaluate("all => all.forEach((each, i) => localStorage['vllmd.conversation.' + i] = each)", broken)
    tab.page.evaluate("localStorage['vllmd.knobs'] = '{'; localStorage['vllmd.theme'] = 'x'")
    tab.page.reload()
    expect(tab.page.locator("#conversations .open")).to_have_text([ATTACKS[1]])
    tab.ask("well?")
    assert tab.page.evaluate(STRANGERS) == []


def test_the_policy_would_have_held(daemon: Daemon, tab: Tab) -> None:
    """The second wall: were there a hole in the first, the browser would refuse."""
    tab.forgive("Content Security Policy|TrustedHTML|blocked|another host")
    tab.open_ready()
    ran = tab.page.evaluate(
        """async (elsewhere) => {
            const made = (name, text) => Object.assign(document.createElement(name), { textContent: text });
            const added = (name, text) => document.body.append(made(name, text));
            const tries = [
                () => (document.body.innerHTML += "<b id=hole></b>"),
                () => added("script", "window.hole = 1"),
                () => document.body.setAttribute("onclick", "window.hole = 1") ?? document.body.click(),
                () => added("style", "body { color: rgb(1, 2, 3) }"),
                async () => { await fetch(elsewhere, { mode: "no-cors" }); window.hole = 1; },
            ];
            for (const each of tries) try { await each(); } catch {}
            const colour = getComputedStyle(document.body).color;
            return [window.hole ?? null, !!document.getElementById("hole"), colour === "rgb(1, 2, 3)"];
        }""",
        ELSEWHERE,
    )
    assert ran == [None, False, False]
