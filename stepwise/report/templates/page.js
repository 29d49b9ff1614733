"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const hash = new URLSearchParams(location.hash.slice(1));
  const plural = (n, word) => n + " " + word + (n === 1 ? "" : "s");

  // Everything that comes from the data goes through here, as text.
  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    for (const child of children) {
      if (child !== null && child !== undefined) node.append(child);
    }
    return node;
  }

  function remember(changes) {
    for (const [key, value] of Object.entries(changes)) {
      if (value) hash.set(key, value);
      else hash.delete(key);
    }
    // Some hosts (a page in a frame without an origin) refuse to change the address; paging must still work there.
    try { history.replaceState(null, "", "#" + hash); } catch (error) { console.info(error.message); }
  }

  function themeButton() {
    const button = byId("theme");
    const order = ["system", "light", "dark"];
    let chosen = order.includes(hash.get("theme")) ? hash.get("theme") : "system";
    const apply = () => {
      if (chosen === "system") document.documentElement.removeAttribute("data-theme");
      else document.documentElement.dataset.theme = chosen;
      button.textContent = "Theme: " + chosen;
    };
    button.addEventListener("click", () => {
      chosen = order[(order.indexOf(chosen) + 1) % order.length];
      apply();
      remember({ theme: chosen === "system" ? "" : chosen });
    });
    button.hidden = false;
    apply();
  }

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
      make("dl", "facts", fact("answer", trace.answer || "none"), fact("gold answer", problem.answer),
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
    const choices = {
      policy: unique("policy").map((name) => [name || "unnamed", (trace) => (trace.policy || "") === name]),
      outcome: [["right", (trace) => trace.right], ["not right", (trace) => !trace.right],
        ...(misses.length > 1 ? misses.map((word) => [word, (trace) => trace.verdict === word]) : [])],
      escalation: [["at least one", (trace) => trace.escalated], ["none", (trace) => !trace.escalated]],
      finish: unique("finish").map((word) => [word, (trace) => trace.finish === word]),
    };
    const selects = Object.keys(choices).map(byId);
    let matching = all;
    let current = all[Math.min(Math.max(Number(hash.get("trace")) || 1, 1), all.length) - 1];

    function show(trace) {
      current = trace;
      const at = matching.indexOf(trace);
      byId("viewer").replaceChildren(trace ? traceNode(trace) : make("p", "notice", "No trace matches these filters."));
      byId("position").value = at + 1;
      byId("position").max = matching.length;
      byId("matches").textContent = "of " + matching.length.toLocaleString("en");
      byId("previous").disabled = at <= 0;
      byId("next").disabled = at < 0 || at >= matching.length - 1;
      byId("status").textContent = trace
        ? "Trace " + (at + 1) + " of " + matching.length + ": " + trace.verdict + ", " + plural((trace.steps || []).length, "step")
        : "No trace matches these filters.";
      remember({ trace: trace && trace !== all[0] ? String(all.indexOf(trace) + 1) : "" });
    }

    function move(by) {
      const next = matching[matching.indexOf(current) + by];
      if (next) show(next);
    }

    function filter() {
      const tests = selects.filter((select) => select.value).map((select) => choices[select.id][Number(select.value)][1]);
      matching = all.filter((trace) => tests.every((test) => test(trace)));
      // Another policy keeps the problem in view, so that two policies can be compared on it.
      const before = current;
      const same = before && matching.find((trace) => trace.problem === before.problem);
      show(matching.includes(before) ? before : same || matching[0]);
    }

    for (const select of selects) {
      const options = [["any"], ...choices[select.id]];
      options.forEach(([name], i) => {
        const option = make("option", "", name);
        option.value = i ? String(i - 1) : "";
        select.append(option);
      });
      select.addEventListener("change", filter);
    }
    byId("previous").addEventListener("click", () => move(-1));
    byId("next").addEventListener("click", () => move(1));
    byId("position").addEventListener("change", (event) => {
      const wanted = Math.min(Math.max(Math.round(Number(event.target.value)) || 1, 1), matching.length);
      show(matching[wanted - 1]);
    });
    document.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const busy = event.target.closest("input, select, textarea, .scroll, .long");
      if (!by || busy || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      move(by);
    });
    byId("controls").hidden = false;
    show(current);
  }

  themeButton();
  sortableTable();
  viewer();
})();
