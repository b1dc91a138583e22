// Names and keyboard focus that Material 9.8 leaves out: its search dialog, and tables that scroll.
document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");
new MutationObserver(() => {
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])"))
    table.setAttribute("tabindex", "0");
}).observe(document.body, { childList: true, subtree: true });
