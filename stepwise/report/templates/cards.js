  // A page whose items are in it as HTML already: the script shows one of them at a time.
  const cards = [...document.querySelectorAll("#cards > article")];
  if (cards.length) {
    const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
    const choices = {};
    for (const select of document.querySelectorAll("#controls select")) {
      const values = [...new Set(cards.map((card) => card.dataset[select.id] || ""))].filter(Boolean);
      if (select.dataset.order === "number") values.sort((a, b) => Number(a) - Number(b));
      choices[select.id] = values.map((value) => [value, (card) => card.dataset[select.id] === value]);
    }
    explorer({
      items: cards,
      choices,
      word: byId("cards").dataset.word,
      show: (card, none) => {
        for (const other of cards) other.hidden = other !== card;
        byId("none").textContent = card ? "" : none;
        byId("none").hidden = Boolean(card);
      },
      told: (card) => card.getAttribute("aria-label"),
      same: (one, other) => one.dataset.problem === other.dataset.problem,
      text: (card) => texts.get(card),
    });
  }
