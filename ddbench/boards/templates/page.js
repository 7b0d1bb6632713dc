"use strict";
const value = (row, i) => row.cells[i].dataset.sort ?? "";
const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
function sort(button) {
  const th = button.closest("th"), body = th.closest("table").tBodies[0], i = th.cellIndex;
  const down = th.getAttribute("aria-sort") === "ascending" ||
    (!th.hasAttribute("aria-sort") && "falling" in th.dataset);
  for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].sort((x, y) => {
    const a = value(x, i), b = value(y, i);
    if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last either way
    return down ? compare(b, a) : compare(a, b);
  });
  body.append(...rows);
}
function filter(input) {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...document.querySelectorAll("[data-filtered] tbody tr")];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const left = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = `${left} of ${rows.length} rows`;
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (button) sort(button);
});
function unfold() { // a link to an entry leads to what it says, not to its folded heading
  const entry = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (entry?.tagName === "DETAILS" && !entry.open) {
    entry.open = true;
    entry.scrollIntoView();
  }
}
addEventListener("hashchange", unfold);
unfold();
document.getElementById("filter")?.addEventListener("input", (event) => filter(event.target));
