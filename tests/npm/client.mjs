// A front end of the AI SDK without a screen: `AbstractChat` over `DefaultChatTransport`, as `useChat` has them.
//
// The argument is the name of the package: ai, ai6 or ai5. Each line on standard input is a command, and each gets one
// line of JSON: what the chat holds by then.

import readline from 'node:readline'

const sdk = await import(process.argv[2])
const { AbstractChat, DefaultChatTransport, validateUIMessages } = sdk

class State {
  status = 'ready'
  error = undefined
  changed = () => {}
  constructor(messages) { this.messages = messages }
  pushMessage = (message) => { this.messages = [...this.messages, message]; this.changed() }
  popMessage = () => { this.messages = this.messages.slice(0, -1) }
  replaceMessage = (index, message) => {
    this.messages = this.messages.toSpliced(index, 1, message)
    this.changed()
  }
  snapshot = (value) => structuredClone(value)
}

class Chat extends AbstractChat {
  constructor(messages) {
    const transport = new DefaultChatTransport({
      ...options.transport,
      fetch: record,
      ...(options.only_last && {
        prepareSendMessagesRequest: ({ id, messages, trigger, messageId }) => ({
          body: { id, message: messages.at(-1), trigger, messageId },
        }),
      }),
    })
    const state = new State(messages)
    super({ id: options.id, transport, state, onFinish: (event) => { finish = event }, sendAutomaticallyWhen: isAnswered })
    this.own = state
  }
}

// What `useChat` is given so that answers to calls are sent on by themselves. The oldest package has but one of the two.
const isAnswered = (state) =>
  sdk.lastAssistantMessageIsCompleteWithToolCalls(state) ||
  Boolean(sdk.lastAssistantMessageIsCompleteWithApprovalResponses?.(state))

let frames = []  // of the last response, as they were sent
let request  // the last one
let finish  // what the last onFinish told

async function record(url, init) {
  request = [url, init]
  const response = await fetch(url, init)
  frames = []
  if (!response.body || response.status === 204) return response
  const [one, other] = response.body.tee()
  read(other.pipeThrough(new TextDecoderStream()), frames).catch(() => {})
  return new Response(one, response)
}

async function read(stream, found) {
  let rest = ''
  for await (const text of stream) {
    const lines = (rest + text).split('\n\n')
    rest = lines.pop()
    for (const line of lines) if (line.startsWith('data: {')) found.push(JSON.parse(line.slice(6)))
  }
}

let options, chat
let pending
const text = () => chat.messages.at(-1)?.parts.map((part) => part.text ?? '').join('') ?? ''
const commands = {
  send: (message) => { pending = chat.sendMessage(message) },
  again: (argument) => { pending = chat.regenerate(argument) },
  resume: () => { pending = chat.resumeStream() },
  stop: () => chat.stop(),
  approve: (argument) => chat.addToolApprovalResponse(argument),
  output: (argument) => chat.addToolOutput(argument),
  set: (messages) => { chat.messages = messages },  // `setMessages` of useChat
  settle: () => pending,
  shows: (words) => new Promise((resolve) => {
    chat.own.changed = () => text().includes(words) && resolve()
    chat.own.changed()
  }),
  open: (given) => {
    [options, frames, request, finish, pending] = [given, [], undefined, undefined, undefined]
    chat = new Chat([])
  },
  load: (messages) => { chat = new Chat(messages) },  // a reload of the page
  validate: (messages) => validateUIMessages({ messages }),
  // The same request once more, which is what a network that lost the answer makes of it.
  repeat: async () => {
    const response = await record(...request)
    await response.text()
    return response.status
  },
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { command, argument } = JSON.parse(line)
  let result, failed
  try { result = await commands[command](argument) } catch (error) { failed = String(error) }
  const { messages, status } = chat
  const error = chat.error?.message
  const told = finish && { isAbort: finish.isAbort, isError: finish.isError, finishReason: finish.finishReason }
  const type = typeof result === 'number' ? result : undefined
  console.log(JSON.stringify({ messages, status, error, frames, finish: told, result: type, failed }))
}
