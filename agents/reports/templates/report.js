"use strict";
(() => {
  const announce = (text) => { document.getElementById("announcement").textContent = text; };

  // Tables sort by their headings; what is not a number stands last either way.
  const key = (row, place) => {
    const cell = row.cells[place], value = cell.dataset.value;
    if (value === undefined) return cell.textContent;
    if (value === "nan") return NaN;
    return value === "inf" ? Infinity : Number(value);
  };
  const compare = (a, b, sign) => {
    if (typeof a === "string" || typeof b === "string") {
      return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
    }
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return a === b ? 0 : sign * (a < b ? -1 : 1);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const falling = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [key(row, place), row]);
        rows.sort(([a], [b]) => compare(a, b, falling ? -1 : 1));
        body.append(...rows.map(([, row]) => row));
        announce(`Sorted by ${button.textContent}, ${falling ? "descending" : "ascending"}.`);
      });
    });
  }

  // Controllers are switched in all plots at once.
  const boxes = [...document.querySelectorAll("[data-toggle]")];
  const draw = (box) => {
    for (const series of document.querySelectorAll(`.series[data-controller="${box.dataset.toggle}"]`)) {
      series.classList.toggle("off", !box.checked);
    }
  };
  for (const box of boxes) box.addEventListener("change", () => draw(box));
  for (const button of document.querySelectorAll("[data-all]")) {
    button.parentElement.hidden = false;
    button.addEventListener("click", () => {
      for (const box of boxes) { box.checked = button.dataset.all !== ""; draw(box); }
      announce(button.dataset.all ? "All controllers are shown." : "No controller is shown.");
    });
  }

  // One setting at a time, where there are several.
  const choice = document.getElementById("setting");
  if (choice) {
    choice.closest(".choose").hidden = false;
    const choose = () => {
      for (const section of document.querySelectorAll("[data-setting]")) {
        section.hidden = choice.value !== "" && section.dataset.setting !== choice.value;
      }
    };
    choice.addEventListener("change", choose);
    addEventListener("beforeprint", () => { for (const s of document.querySelectorAll("[data-setting]")) s.hidden = false; });
    addEventListener("afterprint", choose);
    choose();
  }

  // What a point is, below its plot: the nearest one to the pointer, or to where a finger touched.
  for (const figure of document.querySelectorAll(".plot")) {
    const svg = figure.querySelector("svg"), readout = figure.querySelector(".readout");
    const marks = [...svg.querySelectorAll("[data-text]")];
    readout.hidden = false;
    readout.textContent = "Point at a line to read it.";
    const tell = (event) => {
      const own = event.target.dataset.text;
      let nearest = own, distance = 24;
      for (const mark of own ? [] : marks) {
        if (!mark.classList.contains("mark") || mark.parentElement.classList.contains("off")) continue;
        const box = mark.getBoundingClientRect();
        const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        if (away < distance) { nearest = mark.dataset.text; distance = away; }
      }
      if (nearest) readout.textContent = nearest;
    };
    svg.addEventListener("pointermove", tell);
    svg.addEventListener("pointerdown", tell);
  }
})();
