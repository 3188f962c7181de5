// The site's search reads a hyphen before a word as an operator, so that it finds nothing for --resume. Material for MkDocs
// sends what the reader typed to a worker, as a message of type 2; here it is sent without the hyphens before words.
const post = Worker.prototype.postMessage
Worker.prototype.postMessage = function (message, ...rest) {
  if (message?.type === 2) message = { ...message, data: message.data.replace(/(^|\s)-+(?=\S)/g, "$1") }
  return post.call(this, message, ...rest)
}
