// `useChat` with all that it can do, on `window.chat`. The address has the server, and the session behind the #.

import { useChat } from '@ai-sdk/react'
import * as sdk from 'ai'
import { createRoot } from 'react-dom/client'

const server = new URLSearchParams(location.search).get('server')
const id = location.hash.slice(1)
const tools = { weather: { description: 'The weather in a city', parameters: { type: 'object' } } }
const stored = await fetch(`${server}/sessions/${id}`, { headers: { Accept: 'application/vnd.ai-sdk.ui-messages+json' } })
const history = await stored.json()

const isAnswered = (state) =>
  sdk.lastAssistantMessageIsCompleteWithToolCalls(state) ||
  Boolean(sdk.lastAssistantMessageIsCompleteWithApprovalResponses?.(state))

function Chat() {
  const chat = useChat({
    id,
    messages: history,
    resume: true,
    transport: new sdk.DefaultChatTransport({ api: `${server}/ui/chat`, body: { tools } }),
    sendAutomaticallyWhen: isAnswered,
  })
  window.chat = chat
  return (
    <>
      {chat.messages.map((message) => (
        <article key={message.id} className={message.role}>
          {message.parts.map((part, index) => <Part key={index} part={part} />)}
        </article>
      ))}
      {chat.error && <p role="alert">{chat.error.message}</p>}
      <output>{chat.status}</output>
    </>
  )
}

function Part({ part }) {
  if (part.type === 'text') return <p>{part.text}</p>
  if (part.type === 'dynamic-tool') return <pre>{part.toolName} {part.state} {JSON.stringify(part.output)}</pre>
  return null
}

createRoot(document.getElementById('chat')).render(<Chat />)
