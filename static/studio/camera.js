// An image from the webcam. The button is shown only where browsers allow a camera: on localhost and https.

import { h, openDialog, setText } from '../shared/dom.js';

export const hasCamera = () => Boolean(window.isSecureContext && navigator.mediaDevices?.getUserMedia);

/** Opens the camera; calls `onImage(blob)` once, when the user takes an image. */
export async function openCamera(onImage) {
  const video = h('video', { class: 'or-video', autoplay: true, playsinline: true, 'aria-label': 'Camera' });
  video.muted = true;
  const word = h('p', { class: 'or-quiet', role: 'status' }, 'Waiting for camera permission in the browser.');
  const take = h('button', { type: 'button', class: 'or-primary', disabled: true }, 'take photo');
  const dialog = openDialog('Camera', h('h2', {}, 'Camera'), video, word, take);
  let stream = null;
  const stop = () => stream?.getTracks().forEach((track) => track.stop());
  dialog.addEventListener('close', stop);
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' }, audio: false });
  } catch (error) {
    setText(
      word,
      error.name === 'NotAllowedError'
        ? 'The browser does not allow the camera here. Allow it in the address bar, or choose a file instead.'
        : 'No camera found. Choose a file instead.',
    );
    return;
  }
  if (!dialog.isConnected) return stop();
  video.srcObject = stream;
  await video.play();
  setText(word, 'The image stays on this machine.');
  take.disabled = false;
  take.focus();
  take.addEventListener('click', () => {
    const side = Math.min(video.videoWidth, video.videoHeight);
    const canvas = h('canvas', { width: side, height: side });
    const from = [(video.videoWidth - side) / 2, (video.videoHeight - side) / 2, side, side];
    canvas.getContext('2d').drawImage(video, ...from, 0, 0, side, side);
    canvas.toBlob((blob) => {
      dialog.close();
      onImage(blob);
    }, 'image/png');
  });
}
