// Examples of what the world asks: one held-out task (seeds from 1,000,000,000) of each family, by slice.

export const FAMILIES = [
  {
    slice: 'natural',
    name: 'objects',
    tasks: [
      { family: 'find', seed: 1000000011 },
      { family: 'relation', seed: 1000000004 },
      { family: 'count', seed: 1000000020 },
    ],
  },
  {
    slice: 'structured',
    name: 'charts',
    tasks: [
      { family: 'bar', seed: 1000000007 },
      { family: 'difference', seed: 1000000021 },
      { family: 'table', seed: 1000000009 },
      { family: 'peak', seed: 1000000015 },
    ],
  },
  {
    slice: 'diagrammatic',
    name: 'diagrams',
    tasks: [
      { family: 'extend', seed: 1000000008 },
      { family: 'bounce', seed: 1000000018 },
      { family: 'mirror', seed: 1000000015 },
    ],
  },
  {
    slice: 'operational',
    name: 'grids',
    tasks: [
      { family: 'walker', seed: 1000000035 },
      { family: 'tilt', seed: 1000000018 },
      { family: 'rotate', seed: 1000000015 },
    ],
  },
];

/** The family that stands for its slice in the row above the panel. */
export const FIRST = { natural: 'relation', structured: 'difference', diagrammatic: 'bounce', operational: 'walker' };
