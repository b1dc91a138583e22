// Names and keyboard focus that Material 9.8 leaves out: its search dialog, and tables and
// formulas that scroll.
document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");
const SCROLLING = ".md-typeset__scrollwrap:not([tabindex]), math[display=block]:not([tabindex])";
new MutationObserver(() => {
  for (const each of document.querySelectorAll(SCROLLING))
    each.setAttribute("tabindex", "0");
}).observe(document.body, { childList: true, subtree: true });
