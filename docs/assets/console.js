// Commands are copied without their prompt, and without what they print. Material reads data-copy.
for (const code of document.querySelectorAll(".language-console code"))
  code.setAttribute("data-copy", code.innerText.split("\n").filter(line => line.startsWith("$ "))
    .map(line => line.slice(2)).join("\n"));
