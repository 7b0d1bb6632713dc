"use strict";
const value = (row, i) => row.cells[i].dataset.sort ?? row.cells[i].textContent.trim();
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
document.getElementById("filter")?.addEventListener("input", (event) => filter(event.target));
for (const button of document.querySelectorAll(".command button")) {
  button.hidden = false; // without scripts there is nothing to press
  button.addEventListener("click", async () => {
    const code = button.parentNode.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // a file or an old browser: what is selected can be copied
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
