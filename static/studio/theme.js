// Light and dark: follows the system until the user chooses. Gradio marks dark with a class on the body.

const KEY = 'omni-r1-theme';
const system = matchMedia('(prefers-color-scheme: dark)');

function chosen() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // storage may be disabled
  }
}

export const isDark = () => document.body.classList.contains('dark');

export function applyTheme() {
  const theme = chosen();
  document.body.classList.toggle('dark', theme ? theme === 'dark' : system.matches);
}

export function toggleTheme() {
  const theme = isDark() ? 'light' : 'dark';
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // applies to this page only
  }
  document.body.classList.toggle('dark', theme === 'dark');
}

system.addEventListener('change', applyTheme);
