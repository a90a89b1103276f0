"use strict";
document.documentElement.classList.add("js");

// A click on a header sorts: numbers first from the largest, texts from A; a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });
  const text = (row, column) => row.cells[column].textContent.trim();
  const value = (row, column) => {
    const found = parseFloat(text(row, column).replaceAll(",", ""));
    return Number.isNaN(found) ? null : found;
  };
  headers.forEach((header, column) => {
    const numeric = header.classList.contains("num");
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const first = numeric ? "descending" : "ascending";
      const order = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      const key = numeric ? value : (row, place) => text(row, place) || null;
      const compare = numeric ? (a, b) => a - b : collator.compare;
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
      // What is empty comes last in either order.
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
      headers.forEach((other) => other.setAttribute("aria-sort", other === header ? order : "none"));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

// The slider, or a finger or mouse on the picture, moves the edge between two pictures.
for (const card of document.querySelectorAll(".wipe")) {
  const stage = card.querySelector(".stage");
  const slider = card.querySelector("input[type=range]");
  const move = () => stage.style.setProperty("--at", `${slider.value}%`);
  slider.addEventListener("input", move);
  const drag = (event) => {
    if (event.buttons !== 1) return;
    const box = stage.getBoundingClientRect();
    slider.value = (100 * (event.clientX - box.left)) / box.width;
    move();
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  move();
}

for (const gallery of document.querySelectorAll(".gallery")) {
  const choices = [...gallery.querySelectorAll(".choice input")];
  const choose = () => {
    gallery.dataset.top = choices.find((choice) => choice.checked).value;
    for (const card of gallery.querySelectorAll(".card")) {
      const layers = [...card.querySelectorAll(".over")];
      const wanted = layers.find((layer) => layer.dataset.kind === gallery.dataset.top) ?? layers.at(-1);
      layers.forEach((layer) => layer.classList.toggle("hidden", layer !== wanted));
    }
  };
  choices.forEach((choice) => choice.addEventListener("change", choose));
  if (choices.length) choose();
}
