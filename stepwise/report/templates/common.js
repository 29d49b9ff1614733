  // Shared by the pages; each page's own script follows in the same scope.
  const byId = (id) => document.getElementById(id);
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

  // Shows one of `items` at a time. `choices`: by id of a select, its options as [name, test]; `word`: what an item is
  // called, in the address too; `show(item)` puts it on the page (undefined: none matches); `told(item)`: what a screen
  // reader hears; `same(a, b)`: about the same problem; `text(item)`: what the search field looks through.
  function explorer({ items, choices, word, show, told, same, text }) {
    const selects = Object.keys(choices).map(byId);
    const search = byId("search");
    const none = "No " + word + " matches these filters.";
    let matching = items;
    let current = items[Math.min(Math.max(Number(hash.get(word)) || 1, 1), items.length) - 1];

    function display(item) {
      current = item;
      const at = matching.indexOf(item);
      show(item, none);
      byId("position").value = at + 1;
      byId("position").max = matching.length;
      byId("matches").textContent = "of " + matching.length.toLocaleString("en");
      byId("previous").disabled = at <= 0;
      byId("next").disabled = at < 0 || at >= matching.length - 1;
      byId("status").textContent = item
        ? word[0].toUpperCase() + word.slice(1) + " " + (at + 1) + " of " + matching.length + ": " + told(item)
        : none;
      remember({ [word]: item && item !== items[0] ? String(items.indexOf(item) + 1) : "" });
    }

    function move(by) {
      const next = matching[matching.indexOf(current) + by];
      if (next) display(next);
    }

    function filter() {
      const tests = selects.filter((select) => select.value).map((select) => choices[select.id][Number(select.value)][1]);
      const words = search ? search.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
      matching = items.filter((item) => tests.every((test) => test(item)) && words.every((part) => text(item).includes(part)));
      // Another filter keeps the problem in view, so that two ways with it can be compared.
      const before = current;
      const alike = before && matching.find((item) => same(item, before));
      display(matching.includes(before) ? before : alike || matching[0]);
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
    if (search) search.addEventListener("input", filter);
    byId("previous").addEventListener("click", () => move(-1));
    byId("next").addEventListener("click", () => move(1));
    byId("position").addEventListener("change", (event) => {
      const wanted = Math.min(Math.max(Math.round(Number(event.target.value)) || 1, 1), matching.length);
      display(matching[wanted - 1]);
    });
    document.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const busy = event.target.closest("input, select, textarea, .scroll, .long");
      if (!by || busy || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      move(by);
    });
    byId("controls").hidden = false;
    display(current);
  }

  themeButton();
