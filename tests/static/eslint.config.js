import js from '@eslint/js';
import globals from 'globals';

// Where an address leaves our modules: only static/shared/address.js knows the path prefix of a proxy.
const mapped = ':not([callee.name="urlOf"])';
const first = (calls) => `${calls} > :first-child.arguments${mapped}`;
const leaks = [
  first('CallExpression[callee.name="fetch"]'),
  first('NewExpression[callee.name="EventSource"]'),
  first('NewExpression[callee.property.name="EventSource"]'),
  first('CallExpression[callee.object.name="location"]'),
  first('CallExpression[callee.object.name="window"][callee.property.name="open"]'),
  first('CallExpression[callee.property.name="sendBeacon"]'),
  `CallExpression[callee.object.name="history"] > :nth-child(3).arguments${mapped}`,
  `AssignmentExpression[left.property.name=/^(src|href|action)$/] > .right${mapped}`,
  'CallExpression[callee.property.name="setAttribute"] > Literal.arguments[value=/^(src|href|action)$/]',
  'ImportExpression > Literal[value=/^[/]/]',
  'MemberExpression[object.name="location"][property.name="origin"]',
  'Literal[value=/^[/]static/]',
  'TemplateElement[value.raw=/^[/]static/]',
].map((selector) => ({ selector, message: 'Pass the address through urlOf (static/shared/address.js).' }));

export default [
  { ignores: ['static/swagger/**', 'tests/static/node_modules/**'] },
  js.configs.recommended,
  {
    languageOptions: {
      ecmaVersion: 2024,
      sourceType: 'module',
      globals: { ...globals.browser, gradio_config: 'readonly' },
    },
    rules: {
      'no-unused-vars': [
        'error',
        { args: 'after-used', argsIgnorePattern: '^_', varsIgnorePattern: '^_', caughtErrors: 'none' },
      ],
      eqeqeq: ['error', 'always', { null: 'ignore' }],
      'prefer-const': 'error',
      'no-var': 'error',
      'no-restricted-syntax': ['error', ...leaks],
    },
  },
  { files: ['static/shared/address.js'], rules: { 'no-restricted-syntax': 'off' } },
  {
    files: ['tests/static/**'],
    languageOptions: { globals: { ...globals.node } },
    rules: { 'no-restricted-syntax': 'off' },
  },
];
