// Before the first paint: the reader's own choice of light or dark, if there is one. Without it the system decides.
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // A browser that refuses storage still gets the system's theme.
}
