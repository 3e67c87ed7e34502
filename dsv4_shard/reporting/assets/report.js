// Makes the copy buttons work, and prints what is folded. All else on the page needs no script.
"use strict";

// A page opened as a file may have no clipboard: then the text is selected and copied the old way.
async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}

document.querySelectorAll(".command button").forEach((button) => {
  button.addEventListener("click", async () => {
    const done = await copy(button.parentElement.querySelector("code"));
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
});

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
