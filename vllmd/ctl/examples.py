"""What vllmctl is good for, in examples: they end the help of their verbs and the manual page, and are all tested."""

EXAMPLES = {
    "One answer, a little varied:": ['vllmctl chat "prompt" -t 0.7'],
    "A document first, the question last:": [
        'git diff --staged | vllmctl chat -s "Write a commit message" -t 0.2 -n 200',
        'vllmctl chat -s @review.md -f src/main.py "Any race here?" | tee review.txt',
    ],
    "What is known of an answer, for scripts:": [
        'cat big.log | vllmctl chat "Which host failed first?" --json | jq -r .usage.completion_tokens'
    ],
    "Several questions about one document; the engine reads it once:": [
        'for q in "who?" "when?"; do vllmctl chat -f report.txt "$q"; done'
    ],
    "Inside a loop that reads from stdin, as with ssh -n:": [
        'while read -r q; do vllmctl chat --no-stdin "$q"; done < questions.txt'
    ],
    "Go on as soon as a model is ready:": ["vllmctl wait --timeout 600 && ./nightly.sh"],
    "Fetch a model before it is needed, and look at what the disk holds:": [
        "vllmctl pull Qwen/Qwen2-7B-Instruct",
        "vllmctl models --local",
    ],
    "Its state, for scripts:": ["vllmctl status --json | jq -e '.state == \"ready\"'"],
    "A daemon on another machine:": ["VLLMD_HOST=http://gpu1:8000 vllmctl chat hi --stats"],
    "The first line only; vllmctl ends with 141, silently:": [
        'vllmctl chat "count to 500, one per line" | head -1; echo "${PIPESTATUS[0]}"'
    ],
}
"""Command lines, under what they are for."""


def examples_of(verb: str) -> list[str]:
    """The command lines that show a verb."""
    return [line for lines in EXAMPLES.values() for line in lines if f"vllmctl {verb}" in line]
