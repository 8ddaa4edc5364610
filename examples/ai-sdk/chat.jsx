// The smallest chat with `useChat` of the AI SDK. The session's id stands behind the # of the address.

import { useChat } from '@ai-sdk/react'
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } from 'ai'
import { createRoot } from 'react-dom/client'

const server = new URLSearchParams(location.search).get('server') ?? 'http://127.0.0.1:8080'

function Chat({ id, history }) {
  const { messages, status, error, sendMessage, regenerate, addToolApprovalResponse } = useChat({
    id,
    messages: history,
    resume: true,  // takes up an answer that is being written
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
    transport: new DefaultChatTransport({
      api: `${server}/ui/chat`,
      prepareSendMessagesRequest: ({ id, messages, trigger, messageId }) => ({
        body: { id, message: messages.at(-1), trigger, messageId },  // the server has the others
      }),
    }),
  })
  const busy = status === 'submitted' || status === 'streaming'

  function submit(event) {
    event.preventDefault()
    sendMessage({ text: event.target.elements.text.value })
    event.target.reset()
  }

  return (
    <>
      {messages.map((message) => (
        <article key={message.id} className={message.role}>
          {message.parts.map((part, index) => <Part key={index} part={part} answer={addToolApprovalResponse} />)}
        </article>
      ))}
      {error && <p role="alert">{error.message}</p>}
      <form onSubmit={submit}>
        <input name="text" placeholder="Message" disabled={busy} required />
        {/* A request that ends does not end the turn: cancel does. */}
        {busy && <button type="button" onClick={() => fetch(`${server}/sessions/${id}/cancel`, { method: 'POST' })}>Stop</button>}
        {!busy && messages.length > 0 && <button type="button" onClick={() => regenerate()}>Try again</button>}
      </form>
    </>
  )
}

function Part({ part, answer }) {
  if (part.type === 'text') return <p>{part.text}</p>
  if (part.type === 'reasoning') return <p><em>{part.text}</em></p>
  if (part.state === 'approval-requested') return <Approval part={part} answer={answer} />
  if (part.type === 'dynamic-tool') return <pre>{part.toolName}({JSON.stringify(part.input)}) = {part.output ?? part.errorText}</pre>
  return null
}

// A call that waits: the answer goes to the server by itself, after a reload or a restart of the server too.
function Approval({ part, answer }) {
  const { id } = part.approval
  return (
    <p>
      {part.toolName}({JSON.stringify(part.input)})?
      <button className="allow" onClick={() => answer({ id, approved: true })}>Allow</button>
      <button className="deny" onClick={() => answer({ id, approved: false })}>Deny</button>
    </p>
  )
}

if (!location.hash) {
  const created = await fetch(`${server}/sessions`, { method: 'POST' })
  location.hash = (await created.json()).id
}
const id = location.hash.slice(1)
const stored = await fetch(`${server}/sessions/${id}`, { headers: { Accept: 'application/vnd.ai-sdk.ui-messages+json' } })
createRoot(document.getElementById('chat')).render(<Chat id={id} history={await stored.json()} />)
