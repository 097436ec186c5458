// xterm.js under a strict Content-Security-Policy: it writes <style> elements and style attributes, which the policy
// refuses. Its elements get both through the CSSOM instead, which the policy allows: rules as adopted sheets, attributes as
// style.cssText. Nothing else of the document changes.

const create = document.createElement.bind(document);

function sheetFor(node) {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(node, 'textContent', {set: (text) => sheet.replaceSync(text), get: () => ''});
  const remove = node.remove.bind(node);
  node.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
    remove();
  };
  return node;
}

export function allowStyles() {
  document.createElement = (tag, options) => {
    if (tag === 'style') return sheetFor(create('template')); // a <style>, even an empty one, would be refused
    const node = create(tag, options);
    if (tag === 'span') {
      const set = node.setAttribute.bind(node);
      node.setAttribute = (name, value) => { if (name === 'style') node.style.cssText = value; else set(name, value); };
    }
    return node;
  };
}
