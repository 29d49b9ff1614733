  const data = JSON.parse(byId("data").textContent);

  function sortableTable() {
    const table = byId("policies");
    if (!table) return;
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const given = [...body.rows];
    const collator = new Intl.Collator(undefined, { numeric: true });
    const cellValue = (row, i) => row.cells[i].dataset.value;
    heads.forEach((head, i) => {
      const button = make("button", "sort", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        // Third click on a heading gives the order of the run back.
        const next = { none: "descending", descending: "ascending", ascending: "none" }[head.ariaSort || "none"];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next !== "none") head.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        const rows = next === "none" ? given : [...given].sort((a, b) => {
          const [x, y] = [cellValue(a, i), cellValue(b, i)];
          if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
          return sign * (i === 0 ? collator.compare(x, y) : Number(x) - Number(y));
        });
        body.append(...rows);
      });
    });
  }

  function scoreOf(step) {
    if (step.score === undefined) return null;
    const fill = make("span", "fill");
    fill.style.width = 100 * step.score + "%";
    const track = make("span", "track", fill);
    track.setAttribute("aria-hidden", "true");
    const node = make("span", "score", track, step.score.toFixed(2));
    node.title = "the scorer's probability that this step is right";
    return node;
  }

  function badge(step) {
    const letter = make("b", "badge " + step.kind, step.letter);
    letter.setAttribute("aria-hidden", "true");
    return make("span", "who", letter, " " + step.author);
  }

  function stepNode(step, index) {
    const line = make("div", "line",
      index === null ? null : make("span", "index", String(index)),
      badge(step),
      step.model ? make("span", "muted model", step.model) : null,
      step.tokens ? make("span", "muted", plural(step.tokens, "token")) : null,
      scoreOf(step));
    const text = make("div", "text", step.text || "");
    if ((step.text || "").length > 2000) {
      text.classList.add("long");
      text.tabIndex = 0;
    }
    const node = make("li", "step " + step.kind + (index === null ? " draft" : ""), line, text,
      step.decision ? make("div", "decision", step.decision) : null);
    if (step.discarded) node.append(draftsNode(step.discarded, "discarded draft"));
    return node;
  }

  function draftsNode(drafts, word) {
    const list = make("ol", "steps", ...drafts.map((draft) => stepNode(draft, null)));
    return make("details", "", make("summary", "", plural(drafts.length, word)), list);
  }

  function fact(name, value) {
    return value === undefined ? null : make("div", "", make("dt", "", name), make("dd", "", value));
  }

  function strip(trace) {
    const marks = trace.steps.map((step) => make("b", "badge " + step.kind, step.letter));
    const node = make("div", "strip", ...marks);
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", "Authors in order: " + trace.steps.map((step) => step.author).join(", "));
    return node;
  }

  function traceNode(trace) {
    const problem = data.problems[trace.problem];
    const outcome = trace.right ? "right" : trace.verdict === "not graded" ? "open" : "wrong";
    const sign = { right: "✓ ", wrong: "✗ ", open: "" }[outcome];
    const steps = trace.steps || [];
    const node = make("article", "card",
      make("div", "line",
        make("h3", "", problem.id || ""),
        make("span", "verdict " + outcome, sign + trace.verdict),
        make("span", "chip", trace.finish),
        trace.policy ? make("span", "chip", trace.policy) : null),
      make("div", "text question", problem.question || ""),
      make("dl", "facts", fact("answer", trace.answer || (trace.read ? "not in a box" : "none")),
        fact("answer read from", trace.read), fact("gold answer", problem.answer),
        ...Object.entries(trace.cost).map(([name, value]) => fact(name, value))),
      steps.length ? strip({ steps }) : make("p", "muted", "No step was kept."),
      make("ol", "steps", ...steps.map(stepNode)),
      trace.abandoned ? draftsNode(trace.abandoned, "abandoned draft") : null,
      trace.note ? make("p", "notice", trace.note) : null);
    if (problem.reference) {
      node.append(make("details", "", make("summary", "", "Reference solution"), make("div", "text", problem.reference)));
    }
    return node;
  }

  function viewer() {
    if (!data.traces.length) return;
    const all = data.traces;
    const unique = (key) => [...new Set(all.map((trace) => trace[key] || ""))];
    const misses = [...new Set(all.filter((trace) => !trace.right).map((trace) => trace.verdict))];
    explorer({
      items: all,
      choices: {
        policy: unique("policy").map((name) => [name || "unnamed", (trace) => (trace.policy || "") === name]),
        outcome: [["right", (trace) => trace.right], ["not right", (trace) => !trace.right],
          ...(misses.length > 1 ? misses.map((word) => [word, (trace) => trace.verdict === word]) : [])],
        escalation: [["at least one", (trace) => trace.escalated], ["none", (trace) => !trace.escalated]],
        finish: unique("finish").map((word) => [word, (trace) => trace.finish === word]),
      },
      word: "trace",
      show: (trace, none) => byId("viewer").replaceChildren(trace ? traceNode(trace) : make("p", "notice", none)),
      told: (trace) => trace.verdict + ", " + plural((trace.steps || []).length, "step"),
      same: (one, other) => one.problem === other.problem,
    });
  }

  sortableTable();
  viewer();
