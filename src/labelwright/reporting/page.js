"use strict";
(() => {
  const one = (what, where = document) => where.querySelector(what), all = (what, where = document) => [...where.querySelectorAll(what)];
  document.documentElement.classList.add("js");
  all(".js-only").forEach(each => { each.hidden = false; });
  one("#print").onclick = () => window.print();
  let unfolded = [];
  addEventListener("beforeprint", () => { unfolded = all(".fold:not([open])"); unfolded.forEach(each => { each.open = true; }); });
  addEventListener("afterprint", () => unfolded.forEach(each => { each.open = false; }));
  all("img").forEach(image => {  // tiny pictures stay sharp
    const mark = () => image.classList.toggle("pix", image.naturalWidth > 0 && image.naturalWidth <= 40);
    image.complete ? mark() : image.addEventListener("load", mark);
  });

  // ---- commands to copy
  all(".copy").forEach(button => button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try { await navigator.clipboard.writeText(code.textContent); } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }));

  // ---- tables to sort
  all(".sortable").forEach(table => {
    const body = table.tBodies[0], heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.onclick = () => {
        const is_number = ["count", "share", "number"].some(kind => head.classList.contains(kind));
        const up = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : !is_number || head.classList.contains("share");
        const text = row => row.cells[column].textContent.trim(), value = row => text(row) === "–" ? "" : is_number ? parseFloat(text(row).replaceAll(",", "")) : text(row);
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          return (is_number ? x - y : x.localeCompare(y, undefined, { numeric: true })) * (up ? 1 : -1);
        });
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...rows);
      };
    });
  });

  // ---- images to check
  const grid = one("#grid");
  if (!grid) return;
  const cards = all(".card", grid), dialog = one("#dialog"), names = one("#d-names");
  const known = new Set(JSON.parse(names.dataset.names));
  const store = "labelwright " + grid.dataset.key;
  let marks = {}, tab = one(".tabs [aria-pressed=true]").dataset.tab, at = cards[0];
  try { marks = JSON.parse(localStorage.getItem(store)) || {}; } catch { marks = {}; }
  cards.forEach(card => { card.dataset.label = one(".lab b", card).textContent; });
  ["label", "source"].forEach((key, i) => {
    const found = [...new Set(cards.map(card => card.dataset[key]))].sort();
    one(["#f-class", "#f-source"][i]).append(...found.map(name => new Option(name)));
  });
  const look = card => one(".look", card);
  const shown = () => [...grid.children].filter(card => !card.hidden);

  function draw(card) {
    const label = marks[card.dataset.id], is_marked = label !== undefined;
    card.classList.toggle("marked", is_marked);
    one(".done", card).textContent = !is_marked ? "" : label === card.dataset.label ? "✓ accepted" : "→ " + label;
  }
  function mark(card, label) {
    const say = words => { one("#count").textContent = words; one("#d-state").textContent = words; };
    if (card.hasAttribute("data-fixed")) return say("This is a test image of a table of its own; correct it there.");
    if (label !== undefined && !known.has(label)) return say("That class has no name of yours yet: rename it first, or correct the label.");
    if (label === undefined) delete marks[card.dataset.id]; else marks[card.dataset.id] = label;
    try { localStorage.setItem(store, JSON.stringify(marks)); } catch { /* private window: kept until it is closed */ }
    draw(card);
    tell();
  }
  function tell() {
    const n = Object.keys(marks).length;
    one("#count").textContent = `${shown().length} shown, ${n} marked.`;
    one("#export").disabled = n === 0;
  }
  function focus(card) {
    if (!card) return;
    cards.forEach(each => { look(each).tabIndex = -1; });
    at = card;
    look(card).tabIndex = 0;
    look(card).focus();
  }
  function filter() {
    const label = one("#f-class").value, source = one("#f-source").value, words = one("#f-search").value.trim().toLowerCase();
    const sort = one("#f-sort").value;
    cards.forEach(card => {
      const d = card.dataset;
      card.hidden = (tab && !d.tabs.split(" ").includes(tab)) || (label && d.label !== label) || (source && d.source !== source) ||
        (words && !`${d.id} ${card.textContent}`.toLowerCase().includes(words));
    });
    const order = !sort ? cards : [...cards].sort((a, b) => sort === "trust" ? (a.dataset.trust || 2) - (b.dataset.trust || 2)
      : a.dataset[sort].localeCompare(b.dataset[sort], undefined, { numeric: true }));
    grid.append(...order);
    const first = shown()[0];
    cards.forEach(each => { look(each).tabIndex = each === first ? 0 : -1; });
    at = first || cards[0];
    tell();
  }
  function open(card) {
    const d = card.dataset;
    at = card;
    one("#d-title").textContent = d.label + (d.trust ? `, ${Math.round(d.trust * 100)}%` : "");
    one("#d-pic").replaceChildren(...[...look(card).childNodes].map(each => each.cloneNode(true)));
    one("#d-more").replaceChildren(one(".why", card).cloneNode(true), one("details dl", card).cloneNode(true));
    const label = marks[d.id];
    one("#d-state").textContent = one(".done", card).textContent;
    if (names.length === 1) names.append(...[...known].map(name => new Option(name, name)));  // not before they are wanted
    names.value = label !== undefined && label !== d.label ? label : "";
    if (!dialog.open) dialog.showModal();
  }
  function step(by) {
    const list = shown(), next = list[list.indexOf(at) + by];
    if (next) open(next);
  }
  function stepped(label) {  // mark what the dialog shows, and go on
    mark(at, label);
    if (marks[at.dataset.id] === label && label !== undefined) step(1);
    if (marks[at.dataset.id] !== undefined || label === undefined) one("#d-state").textContent = one(".done", at).textContent;
  }
  dialog.addEventListener("close", () => focus(at));
  one("#d-accept").onclick = () => stepped(at.dataset.label);
  one("#d-undo").onclick = () => stepped(undefined);
  one("#d-back").onclick = () => step(-1);
  one("#d-on").onclick = () => step(1);
  names.onchange = () => { if (names.value) mark(at, names.value), (one("#d-state").textContent = one(".done", at).textContent); };
  dialog.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === names && event.key !== "Enter") return;
    const act = { ArrowRight: () => step(1), ArrowLeft: () => step(-1), a: () => stepped(at.dataset.label), u: () => stepped(undefined), c: () => names.focus() }[event.key];
    if (event.target === names) { one("#d-on").focus(); event.preventDefault(); } else if (act) { act(); event.preventDefault(); }
  });
  grid.addEventListener("click", event => {
    const button = event.target.closest(".look");
    if (button) open(button.closest(".card"));
  });
  grid.addEventListener("keydown", event => {
    const card = event.target.closest(".card");
    if (!card || !event.target.classList.contains("look") || event.ctrlKey || event.metaKey || event.altKey) return;
    const list = shown(), i = list.indexOf(card);
    const across = Math.max(1, list.findIndex(each => each.offsetTop > list[0].offsetTop));
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, ArrowDown: i + across, ArrowUp: i - across, Home: 0, End: list.length - 1 }[event.key];
    if (to !== undefined) focus(list[to]);
    else if (event.key === "a") { mark(card, card.dataset.label); focus(list[i + 1] || card); }
    else if (event.key === "u") mark(card, undefined);
    else if (event.key === "c") { open(card); names.focus(); }
    else return;
    event.preventDefault();
  });
  all(".tabs button").forEach(button => {
    button.onclick = () => {
      tab = button.dataset.tab;
      all(".tabs button").forEach(each => each.setAttribute("aria-pressed", each === button));
      filter();
    };
  });
  ["#f-class", "#f-source", "#f-sort", "#f-search"].forEach(each => one(each).addEventListener("input", filter));
  one("#export").onclick = () => {
    const plain = text => /^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text;  // a formula to a spreadsheet
    const cell = text => /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    const text = "id,label\n" + Object.entries(marks).map(row => row.map(plain).map(cell).join(",") + "\n").join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = one("#export").dataset.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  cards.forEach(card => {
    draw(card);
    look(card).setAttribute("aria-label", `Look at ${card.dataset.id}: ${one(".lab", card).textContent.trim()}`);
  });
  filter();
})();
